"""How training is going, in words: the update in progress, time, actors, success per task."""

import time
from collections import defaultdict, deque

from ript_ray.evaluation.evaluate import EvaluationResult
from ript_ray.rl.callbacks import RolloutStats, UpdateRecord
from ript_ray.rl.context_stream import ContextStream
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.protocols import Runtime
from ript_ray.runtime.heartbeat import in_minutes
from ript_ray.types import GroupSummary

RECENT_GROUPS = 20
"""Success of a task is that of its last groups, so many of them."""

SHOWN_TASKS = 6
"""Of more tasks than that, the worst are shown."""


class TrainingStatus:
    """Follows post-training and says where it is."""

    def __init__(self, num_updates: int):
        """Start the clock.

        Args:
            num_updates: Updates that the run will have.
        """
        self.num_done = 0
        self._num_updates = num_updates
        self._created = time.perf_counter()
        self._started: float | None = None
        self._num_timed = 0
        self._num_replaced = 0
        self._before: EvaluationResult | None = None
        self._runtime: Runtime | None = None
        self._stream: ContextStream | None = None
        self._recent: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT_GROUPS))

    def start(self, before: EvaluationResult, runtime: Runtime, stream: ContextStream) -> None:
        """Say what is trained.

        Args:
            before: Held-out success before it.
            runtime: Where it runs; asked how many actors are up.
            stream: Tells the tasks of groups.
        """
        self._before, self._runtime, self._stream = before, runtime, stream

    def add_group(self, stats: RolloutStats, summary: GroupSummary) -> None:
        """Count a finished group."""
        if self._started is None:
            self._started = stats.started
            self.num_done = stats.update - 1  # a resumed run does not start at 0
        if self._stream is not None and (successes := summary.successes):  # a group with an error may have none
            rate = sum(success == 1.0 for success in successes) / len(successes)
            self._recent[self._stream.at(summary.index).task].append(rate)

    def add_update(self, record: UpdateRecord) -> None:
        """Count a finished update."""
        self.num_done = record.stats.update
        self._num_timed += 1
        self._num_replaced = record.num_replaced

    def progress(self, stats: RolloutStats) -> float:
        """Updates so far, and the part of the present one that is collected."""
        return self.num_done + stats.num_collected / stats.num_wanted * (stats.update > self.num_done)

    def of_update(self, stats: RolloutStats) -> str:
        """The update in progress."""
        verdicts = stats.verdicts
        rate = stats.env_steps / (stats.rollout_s or max(1e-9, time.perf_counter() - stats.started))
        return (
            f"update {stats.update} of {self._num_updates}: "
            f"{stats.num_collected} of {stats.num_wanted} groups accepted, "
            f"{verdicts[Verdict.ALL_FAILED]} all failed, {verdicts[Verdict.ALL_SOLVED]} all solved, "
            f"success {stats.success_rate:.0%}, {rate:,.0f} env steps/s"
        )

    def of_time(self) -> str:
        """Time so far and time left, and the actors."""
        now = time.perf_counter()
        left = "time left unknown"
        if self._num_timed and self._started is not None:
            left_s = (now - self._started) / self._num_timed * (self._num_updates - self.num_done)
            left = f"{in_minutes(left_s)} left"
        parts = [f"{in_minutes(now - self._created)} elapsed", left]
        if self._runtime is not None:
            parts.append(f"{self._runtime.num_alive} of {self._runtime.num_actors} actors alive")
        if self._num_replaced:
            parts.append(f"{self._num_replaced} replaced")
        return ", ".join(parts)

    def of_tasks(self) -> str:
        """Success of each task, of the worst ones if they are many, beside what it was before training."""
        if self._before is None or not self._recent:
            return ""
        before = self._before.per_task
        rates = {task: sum(recent) / len(recent) for task, recent in self._recent.items()}
        shown = sorted(rates) if len(rates) <= SHOWN_TASKS else sorted(rates, key=rates.__getitem__)[:SHOWN_TASKS]
        texts = [
            f"{task} {rates[task]:.0%}" + (f" ({before[task].success_rate:.0%})" if task in before else "")
            for task in shown
        ]
        more = f", better: {len(rates) - len(shown)} more" if len(rates) > len(shown) else ""
        return (
            f"success, last {RECENT_GROUPS} groups of each task (before RIPT, held out): {', '.join(texts)}{more}; "
            f"all tasks before RIPT: {self._before.overall.success_rate:.1%}"
        )
