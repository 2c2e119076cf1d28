"""Success rates on held-out contexts, with intervals.

Every policy of an experiment meets the same contexts with the same seed per rollout, so two policies
differ by what they do and not by what they met.
"""

import functools
import math
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import binomtest

from ript_ray.errors import WorkerError
from ript_ray.rl.protocols import Runtime
from ript_ray.seeding import Purpose, seed_of, text_code
from ript_ray.types import Context, GroupSummary, RolloutRequest, Seed


@dataclass(frozen=True)
class SuccessRate:
    """Successes among rollouts, with the 95 % Wilson interval.

    Attributes:
        success_rate: Share of successes, 0 to 1.
        low: Lower end of the interval.
        high: Upper end of the interval.
        num_rollouts: Rollouts behind it.
    """

    success_rate: float
    low: float
    high: float
    num_rollouts: int

    @classmethod
    def of(cls, successes: Sequence[float]) -> "SuccessRate":
        """Count successes (1.0 or 0.0 each), at least one rollout. Source: Wilson 1927."""
        num_solved = int(sum(successes))
        interval = binomtest(num_solved, len(successes)).proportion_ci(0.95, method="wilson")
        return cls(num_solved / len(successes), float(interval.low), float(interval.high), len(successes))


@dataclass(frozen=True)
class EvaluationResult:
    """What became of every rollout, in the order of its task's contexts: results over the same contexts pair up.

    Attributes:
        outcomes: Per task, whether each rollout succeeded; at least one task and one rollout of each.
        num_env_steps: Environment steps that the evaluation took.
    """

    outcomes: dict[str, tuple[bool, ...]]
    num_env_steps: int

    @functools.cached_property
    def overall(self) -> SuccessRate:
        """Success over all rollouts."""
        return SuccessRate.of([success for found in self.outcomes.values() for success in found])

    @functools.cached_property
    def per_task(self) -> dict[str, SuccessRate]:
        """Success over the rollouts of each task."""
        return {task: SuccessRate.of(found) for task, found in self.outcomes.items()}

    def to_json(self) -> dict[str, Any]:
        """The figures over all rollouts, `per_task` the same for each task, `outcomes` ("101": the second failed)."""
        return {
            **asdict(self.overall),
            "per_task": {task: asdict(rate) for task, rate in self.per_task.items()},
            "outcomes": {task: "".join("01"[success] for success in found) for task, found in self.outcomes.items()},
            "env_steps": self.num_env_steps,
        }

    @classmethod
    def from_json(cls, figures: dict[str, Any]) -> "EvaluationResult":
        """Read what `to_json` gave.

        Raises:
            ValueError: Something is missing or unknown, or the figures are not those of the outcomes.
        """
        try:
            outcomes = {
                str(task): tuple(bool("01".index(letter)) for letter in letters)
                for task, letters in figures["outcomes"].items()
            }
            result = cls(outcomes, operator.index(figures["env_steps"]))
            stated = result.to_json()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"no figures of an evaluation: {error!r}") from error
        differing = ", ".join(sorted(key for key in stated | figures if not _agree(stated.get(key), figures.get(key))))
        if differing:
            raise ValueError(f"the figures are not those of the outcomes: {differing}")
        return result


def _agree(one: Any, other: Any) -> bool:
    """Whether figures are the same, but for the last bits, which another version of SciPy may round otherwise."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_agree(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, abs_tol=1e-9)
    return bool(one == other)


def evaluate(runtime: Runtime, contexts: Sequence[Context], *, batch_size: int, seed: int) -> EvaluationResult:
    """Run one rollout from each context.

    Args:
        runtime: Whose actors run them; nothing else may be in flight.
        contexts: Where the rollouts start.
        batch_size: Episodes that one actor runs side by side.
        seed: The experiment's seed.

    Raises:
        WorkerError: An environment answers something else than success or failure.
    """
    requests = evaluation_requests(contexts, batch_size=batch_size, seed=seed)
    for request in requests:
        runtime.launch(request)
    successes: dict[int, float] = {}
    num_env_steps = 0
    for _ in requests:
        summary = runtime.next_event()
        assert isinstance(summary, GroupSummary), "nothing is learned during an evaluation"
        runtime.discard(summary.index)
        if summary.error:
            raise WorkerError(f"evaluation of {contexts[summary.index].task}: {summary.error}")
        num_env_steps += sum(summary.num_steps)
        for row, success in enumerate(summary.successes):
            successes[summary.index + row] = success
    outcomes: dict[str, list[bool]] = {}
    for index, context in enumerate(contexts):
        outcomes.setdefault(context.task, []).append(successes[index] == 1.0)
    return EvaluationResult({task: tuple(found) for task, found in outcomes.items()}, num_env_steps)


def evaluation_requests(contexts: Sequence[Context], *, batch_size: int, seed: int) -> list[RolloutRequest]:
    """What an evaluation asks of actors; the index of a request is that of its first context.

    See `evaluate` for the arguments. Which rollouts act as one batch is part of their outcome: floating-point
    sums differ, in the last bits, with the size of a batch.
    """
    seeds = _rollout_seeds(contexts, seed)
    starts = range(0, len(contexts), batch_size)
    rows = [slice(start, start + batch_size) for start in starts]
    return [
        RolloutRequest(start, tuple(contexts[part]), seeds[part], keep_record=False)
        for start, part in zip(starts, rows, strict=True)
    ]


def _rollout_seeds(contexts: Sequence[Context], seed: int) -> tuple[Seed, ...]:
    """One per context, by its task and its place among the task's: other tasks or more contexts change none."""
    counts: Counter[str] = Counter()
    seeds = []
    for context in contexts:
        seeds.append(seed_of(seed, Purpose.EVALUATION_ROLLOUTS, text_code(context.task), counts[context.task]))
        counts[context.task] += 1
    return tuple(seeds)
