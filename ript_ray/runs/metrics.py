"""Metrics of a run beside those of an update itself: success per task, memory, the result and what it cost."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

from ript_ray.evaluation.comparison import Comparison, PairedDifference
from ript_ray.evaluation.evaluate import EvaluationResult, SuccessRate
from ript_ray.rl.protocols import RuntimeUsage
from ript_ray.runs.checkpoint import RunTotals
from ript_ray.types import GroupSummary, ProcessUsage

MAX_LISTED = 16
"""Actors whose memory is listed one by one; of more, only the highest and the mean."""


class TaskCounts:
    """Rollouts and groups of each task, by the update that they were collected for."""

    def __init__(self, task_of: Callable[[int], str]):
        """Count by the task of a group's index."""
        self._task_of = task_of
        self._counts: defaultdict[int, Counter[tuple[str, str]]] = defaultdict(Counter)

    def add(self, update: int, summary: GroupSummary, *, is_accepted: bool) -> None:
        """Add a finished group."""
        task, counts = self._task_of(summary.index), self._counts[update]
        counts["rollouts", task] += len(summary.successes)
        counts["solved", task] += sum(success == 1.0 for success in summary.successes)
        counts["accepted", task] += is_accepted

    def take(self, update: int) -> dict[str, float]:
        """Return the metrics of an update, of the tasks that were drawn, and forget its counts."""
        counts = self._counts.pop(update, Counter())
        metrics: dict[str, float] = {}
        for task in sorted(task for what, task in counts if what == "rollouts"):
            metrics[f"train/success_rate/{task}"] = counts["solved", task] / counts["rollouts", task]
            metrics[f"groups/accepted/{task}"] = counts["accepted", task]
        return metrics


class IdleTime:
    """The share of the rollout actors' time in which they had no group to roll out, from one update to the next.

    At lag 0 they wait while the learner trains; besides, they wait for the last groups of a batch, for weights, and for
    the driver.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        """Begin with no update; `now_s` is the clock."""
        self._now_s = now_s
        self._before: tuple[float, Mapping[int, ProcessUsage]] | None = None

    def take(self, usage: RuntimeUsage) -> dict[str, float]:
        """Return the metric of an update that has just ended, of the actors that have reported since the last one.

        There is none at the first update, nor without actors.
        """
        now_s, actors = self._now_s(), dict(usage.processes.get("actor", {}))
        before, self._before = self._before, (now_s, actors)
        if before is None:
            return {}
        since_s, earlier = before
        same = [n for n in actors if n in earlier and actors[n].pid == earlier[n].pid]
        if not same or now_s <= since_s:
            return {}
        busy_s = sum(actors[number].busy_s - earlier[number].busy_s for number in same)
        return {"time/actors_idle": min(1.0, max(0.0, 1 - busy_s / (len(same) * (now_s - since_s))))}


def memory_metrics(usage: RuntimeUsage) -> dict[str, float]:
    """Resident memory in bytes: the highest and the mean of each kind of process, and each one if they are few."""
    metrics: dict[str, float] = {}
    for kind, processes in usage.processes.items():
        sizes = {number: process.rss_bytes for number, process in sorted(processes.items())}
        if sizes:
            metrics[f"memory/{kind}_bytes"] = max(sizes.values())
        if len(sizes) > 1:
            metrics[f"memory/{kind}_mean_bytes"] = sum(sizes.values()) / len(sizes)
        if 1 < len(sizes) <= MAX_LISTED:
            metrics |= {f"memory/{kind}_{number}_bytes": size for number, size in sizes.items()}
    return metrics


def rate_metrics(name: str, rate: SuccessRate) -> dict[str, float]:
    """A success rate and the ends of its interval."""
    return {name: rate.success_rate, f"{name}_low": rate.low, f"{name}_high": rate.high}


def gain_metrics(name: str, gain: PairedDifference) -> dict[str, float]:
    """A paired difference and the ends of its interval."""
    return {name: gain.difference, f"{name}_low": gain.low, f"{name}_high": gain.high}


def result_metrics(before: EvaluationResult, after: EvaluationResult, totals: RunTotals) -> dict[str, float]:
    """What post-training changed, as columns in a list of runs, and what a percentage point cost if it is a gain."""
    gain = Comparison.of(before, after).overall
    metrics = rate_metrics("result/before", before.overall) | rate_metrics("result/after", after.overall)
    metrics |= gain_metrics("result/gain", gain) | {"result/p": gain.p_value}
    points = 100 * gain.difference
    if points > 0:
        costs = {"env_steps": totals.env_steps, "rollouts": totals.num_rollouts, "core_s": totals.core_s}
        metrics |= {f"cost/{name}_per_point": cost / points for name, cost in costs.items()}
    return metrics
