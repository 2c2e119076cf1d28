"""Training callbacks, the records they receive, and the result of training."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, Self

from ript_ray.errors import SearchExhaustedError
from ript_ray.rl.dynamic_sampling import Verdict, trained_verdicts
from ript_ray.rl.learner import UpdateReport
from ript_ray.rl.ledger import Ledger
from ript_ray.rl.protocols import RuntimeUsage
from ript_ray.types import Arrays, GroupSummary, Progress, Weights


@dataclass
class RolloutStats:
    """Running statistics of the rollouts collected for one update.

    Attributes:
        update: Number of the update, from 1.
        num_wanted: Groups that the batch needs.
        verdicts: Groups so far, by verdict.
        num_rollouts: Finished rollouts.
        num_solved: Successful rollouts.
        env_steps: Environment steps.
        record_bytes: Size of the records of the groups collected for a batch.
        started: Start of collection, by `time.perf_counter`.
        rollout_s: Collection time, set once the batch is full; at a lag above 0, the time since the previous batch.
        dynamic: Whether uniform groups are rejected; otherwise they are collected as well.
        num_uniform_trained: Uniform groups in the batch of this update, set once it is full.
    """

    update: int
    num_wanted: int
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    num_rollouts: int = 0
    num_solved: int = 0
    env_steps: int = 0
    record_bytes: int = 0
    started: float = field(default_factory=time.perf_counter)
    rollout_s: float = 0.0
    dynamic: bool = True
    num_uniform_trained: int = 0

    def count(self, summary: GroupSummary, verdict: Verdict) -> None:
        """Add a finished group."""
        self.verdicts[verdict] += 1
        self.num_rollouts += len(summary.successes)
        self.num_solved += sum(success == 1.0 for success in summary.successes)
        self.env_steps += sum(summary.num_steps)
        self.record_bytes += summary.num_bytes if verdict in trained_verdicts(dynamic=self.dynamic) else 0

    def replace(self, lost: GroupSummary, trained: GroupSummary) -> None:
        """Count another result of a group that is counted already, here or in the update before."""
        self.num_solved += sum(success == 1.0 for success in trained.successes)
        self.num_solved -= sum(success == 1.0 for success in lost.successes)
        self.env_steps += sum(trained.num_steps) - sum(lost.num_steps)
        self.record_bytes += trained.num_bytes - lost.num_bytes

    def close(self, *, num_uniform_trained: int) -> Self:
        """Stop the clock: the batch is full."""
        self.rollout_s = time.perf_counter() - self.started
        self.num_uniform_trained = num_uniform_trained
        return self

    def next(self) -> "RolloutStats":
        """Return empty statistics for the next update."""
        return RolloutStats(self.update + 1, self.num_wanted, dynamic=self.dynamic)

    @property
    def num_collected(self) -> int:
        """Groups so far that enter a batch."""
        return sum(self.verdicts[verdict] for verdict in trained_verdicts(dynamic=self.dynamic))

    @property
    def success_rate(self) -> float:
        """Fraction of successful rollouts over all groups, including rejected ones; 0 before the first."""
        return self.num_solved / max(1, self.num_rollouts)


@dataclass(frozen=True)
class UpdateRecord:
    """Everything about one finished update.

    Attributes:
        stats: Statistics of its rollouts.
        report: The learner's report.
        weights: The new weights. Idle actors hold them; busy actors load them before their next group.
        progress: Training progress after the update.
        ledger: Outcome counts of all groups dispatched so far.
        num_replaced: Rollout actors replaced so far.
        learner_state: Fetches the learner's state; valid until the next update starts.
        broadcast_s: Seconds spent sending weights.
        usage: Memory and processor time of all processes.
    """

    stats: RolloutStats
    report: UpdateReport
    weights: Weights
    progress: Progress
    ledger: Ledger
    num_replaced: int
    learner_state: Callable[[], Arrays]
    broadcast_s: float
    usage: RuntimeUsage = RuntimeUsage()  # noqa: RUF009 (frozen)


class Callback(Protocol):
    """Training callback, called synchronously in the training loop."""

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        """Handle a finished group; `stats` already include it.

        With policy lag, a group that was lost before the learner had it is rolled out again and handled a second time:
        what is trained is what came last.
        """
        ...

    def on_update(self, record: UpdateRecord) -> None:
        """Handle a finished update, after its weights were broadcast."""
        ...


@dataclass(frozen=True)
class TrainResult:
    """Result of training.

    Attributes:
        ledger: Outcome counts of all dispatched groups.
        exhausted: Why the search for mixed groups ended early; None after all updates.
        last: Statistics of the unfinished update if the search ended early, else None.
    """

    ledger: Ledger = Ledger()  # noqa: RUF009 (frozen)
    exhausted: SearchExhaustedError | None = None
    last: RolloutStats | None = None
