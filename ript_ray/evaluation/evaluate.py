"""Success rates on held-out contexts, with confidence intervals.

All policies of an experiment are evaluated on the same contexts with the same seed per rollout, so that their results
can be compared in pairs.
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
from ript_ray.seeding import Split, seed_of, text_code
from ript_ray.types import Context, RolloutRequest, Seed

NOTES = ("schema", "demonstrations", "benchmark")
"""What a file of `ript-ray evaluate` has beside the figures: its schema's number, who performed the demonstrations, and
what differs in the benchmark."""


@dataclass(frozen=True)
class SuccessRate:
    """Success rate with its 95 % Wilson interval.

    Attributes:
        success_rate: Share of successes, 0 to 1.
        low: Lower end of the interval.
        high: Upper end of the interval.
        num_rollouts: Sample size.
    """

    success_rate: float
    low: float
    high: float
    num_rollouts: int

    @classmethod
    def of(cls, successes: Sequence[float]) -> "SuccessRate":
        """Compute the rate and interval of at least one success (1.0) or failure (0.0). Source: Wilson 1927."""
        num_successes = int(sum(successes))
        interval = binomtest(num_successes, len(successes)).proportion_ci(0.95, method="wilson")
        return cls(num_successes / len(successes), float(interval.low), float(interval.high), len(successes))


@dataclass(frozen=True)
class EvaluationResult:
    """Outcome of every rollout.

    Attributes:
        outcomes: Per task, whether each rollout succeeded, in the order of the task's contexts; at least one task and
            one rollout of each.
        num_env_steps: Environment steps of all rollouts.
    """

    outcomes: dict[str, tuple[bool, ...]]
    num_env_steps: int

    @functools.cached_property
    def overall(self) -> SuccessRate:
        """Success rate over all rollouts."""
        return SuccessRate.of([success for successes in self.outcomes.values() for success in successes])

    @functools.cached_property
    def per_task(self) -> dict[str, SuccessRate]:
        """Success rate of each task."""
        return {task: SuccessRate.of(successes) for task, successes in self.outcomes.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the overall rate, the rates `per_task`, and `outcomes` as strings ("101": the second failed)."""
        return {
            **asdict(self.overall),
            "per_task": {task: asdict(rate) for task, rate in self.per_task.items()},
            "outcomes": {task: "".join("01"[ok] for ok in successes) for task, successes in self.outcomes.items()},
            "env_steps": self.num_env_steps,
        }

    @classmethod
    def from_json(cls, figures: dict[str, Any]) -> "EvaluationResult":
        """Parse the output of `to_json`, or a file that `ript-ray evaluate` makes of it.

        Raises:
            ValueError: A key is missing or unknown, or the rates do not match the outcomes.
        """
        figures = {name: value for name, value in figures.items() if name not in NOTES}
        try:
            outcomes = {
                str(task): tuple(bool("01".index(digit)) for digit in digits)
                for task, digits in figures["outcomes"].items()
            }
            result = cls(outcomes, operator.index(figures["env_steps"]))
            expected = result.to_json()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not a valid evaluation result: {error!r}") from error
        differing = sorted(key for key in expected | figures if not _is_close(expected.get(key), figures.get(key)))
        if differing:
            raise ValueError(f"the evaluation result does not match its outcomes: {', '.join(differing)}")
        return result


def _is_close(one: Any, other: Any) -> bool:
    """Whether values are equal up to rounding: SciPy versions differ in the last bits."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_close(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, abs_tol=1e-9)
    return bool(one == other)


def evaluate(runtime: Runtime, requests: Sequence[RolloutRequest]) -> EvaluationResult:
    """Run the requests of an evaluation on a runtime, beside those of training if there are any.

    Raises:
        WorkerError: A rollout failed, e.g. an environment returned neither success nor failure.
    """
    outcomes: dict[str, list[bool]] = {}
    num_env_steps = 0
    for request, summary in zip(requests, runtime.roll_out(requests), strict=True):
        if summary.error:
            raise WorkerError(f"evaluation of {request.contexts[0].task}: {summary.error}")
        num_env_steps += sum(summary.num_steps)
        for context, success in zip(request.contexts, summary.successes, strict=True):
            outcomes.setdefault(context.task, []).append(success == 1.0)
    return EvaluationResult({task: tuple(each) for task, each in outcomes.items()}, num_env_steps)


def evaluation_requests(
    contexts: Sequence[Context], *, batch_size: int, seed: int, split: Split = Split.TEST, deterministic: bool = False
) -> list[RolloutRequest]:
    """Return the requests of an evaluation, one rollout from each context; their indices are negative.

    Outcomes depend on `batch_size`: floating-point sums over a batch differ in the last bits with its size.

    Args:
        contexts: Initial states.
        batch_size: Episodes per request; one actor runs them as a batch.
        seed: The seed of the evaluation.
        split: What the contexts are for; part of the seed of each rollout.
        deterministic: Whether the policy acts without chance.
    """
    seeds = _rollout_seeds(contexts, seed, split)
    rows = [slice(start, start + batch_size) for start in range(0, len(contexts), batch_size)]
    return [
        RolloutRequest(-number, tuple(contexts[part]), seeds[part], keep_record=False, deterministic=deterministic)
        for number, part in enumerate(rows, start=1)
    ]


def _rollout_seeds(contexts: Sequence[Context], seed: int, split: Split) -> tuple[Seed, ...]:
    """One seed per context, from its task and its index within the task, so other tasks do not change it."""
    counts: Counter[str] = Counter()
    seeds = []
    for context in contexts:
        seeds.append(seed_of(seed, split.rollouts, text_code(context.task), counts[context.task]))
        counts[context.task] += 1
    return tuple(seeds)
