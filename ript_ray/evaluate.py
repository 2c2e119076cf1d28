"""Success rates on held-out contexts, with intervals.

Every policy of an experiment meets the same contexts with the same seed per rollout, so two policies
differ by what they do and not by what they met.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import binomtest

from ript_ray.errors import WorkerError
from ript_ray.runtime.contract import Runtime
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
    """Success in all and per task.

    Attributes:
        overall: Over all rollouts.
        per_task: Over the rollouts of each task.
        num_env_steps: Environment steps that the evaluation took.
    """

    overall: SuccessRate
    per_task: dict[str, SuccessRate]
    num_env_steps: int

    def to_json(self) -> dict[str, Any]:
        """The figures over all rollouts, `per_task` the same for each task, and `env_steps`."""
        per_task = {task: asdict(rate) for task, rate in self.per_task.items()}
        return {**asdict(self.overall), "per_task": per_task, "env_steps": self.num_env_steps}

    @classmethod
    def from_json(cls, figures: dict[str, Any]) -> "EvaluationResult":
        """Read what `to_json` gave."""
        overall = {name: value for name, value in figures.items() if name not in ("per_task", "env_steps")}
        per_task = {task: SuccessRate(**rate) for task, rate in figures["per_task"].items()}
        return cls(SuccessRate(**overall), per_task, figures["env_steps"])


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
    seeds = _rollout_seeds(contexts, seed)
    starts = range(0, len(contexts), batch_size)
    for start in starts:
        rows = slice(start, start + batch_size)
        runtime.launch(RolloutRequest(start, tuple(contexts[rows]), seeds[rows], keep_record=False))
    successes: dict[int, float] = {}
    num_env_steps = 0
    for _ in starts:
        summary = runtime.next_event()
        assert isinstance(summary, GroupSummary), "nothing is learned during an evaluation"
        runtime.drop(summary.index)
        if summary.problem:
            raise WorkerError(f"evaluation of {contexts[summary.index].task}: {summary.problem}")
        num_env_steps += sum(summary.num_steps)
        for row, success in enumerate(summary.successes):
            successes[summary.index + row] = success
    by_task: dict[str, list[float]] = {}
    for index, context in enumerate(contexts):
        by_task.setdefault(context.task, []).append(successes[index])
    return EvaluationResult(
        overall=SuccessRate.of(list(successes.values())),
        per_task={task: SuccessRate.of(found) for task, found in by_task.items()},
        num_env_steps=num_env_steps,
    )


def _rollout_seeds(contexts: Sequence[Context], seed: int) -> tuple[Seed, ...]:
    """One per context, by its task and its place among the task's: other tasks or more contexts change none."""
    counts: Counter[str] = Counter()
    seeds = []
    for context in contexts:
        seeds.append(seed_of(seed, Purpose.EVALUATION_ROLLOUTS, text_code(context.task), counts[context.task]))
        counts[context.task] += 1
    return tuple(seeds)
