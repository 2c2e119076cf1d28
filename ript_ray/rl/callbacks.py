"""What the training loop tells its callbacks, and what it returns."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, Self

from ript_ray.errors import SearchExhaustedError
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.learner import UpdateReport
from ript_ray.rl.ledger import Ledger
from ript_ray.types import Arrays, GroupSummary, Progress, Weights


@dataclass
class RolloutStats:
    """Running figures of the rollouts of one update.

    Attributes:
        update: Number of the update, from 1.
        num_wanted: Mixed groups that the batch needs.
        verdicts: Groups by verdict so far.
        num_rollouts: Rollouts finished so far.
        num_solved: Successful ones.
        env_steps: Environment steps.
        record_bytes: Bytes of the accepted groups' records.
        started: When collection began, by `time.perf_counter`.
        rollout_s: Seconds it took, once the batch is full; at a lag above 0 from one batch to the next.
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

    def count(self, summary: GroupSummary, verdict: Verdict) -> None:
        """Add one finished group."""
        self.verdicts[verdict] += 1
        self.num_rollouts += len(summary.successes)
        self.num_solved += sum(success == 1.0 for success in summary.successes)
        self.env_steps += sum(summary.num_steps)
        self.record_bytes += summary.num_bytes if verdict is Verdict.ACCEPTED else 0

    def close(self) -> Self:
        """Stop the clock."""
        self.rollout_s = time.perf_counter() - self.started
        return self

    @property
    def success_rate(self) -> float:
        """Share of rollouts solved, over all groups, rejected ones included; 0 before the first."""
        return self.num_solved / max(1, self.num_rollouts)


@dataclass(frozen=True)
class UpdateRecord:
    """All that happened in one update.

    Attributes:
        collection: The rollouts.
        report: The learning.
        weights: The newest; what idle actors hold, and the others take before their next group.
        progress: Where training stands now.
        ledger: Where every group that was dispatched so far has gone.
        num_replaced: Rollout actors replaced so far.
        learner_state: Fetches the learner's state, which the next update changes.
        broadcast_s: Seconds spent sending weights.
    """

    stats: RolloutStats
    report: UpdateReport
    weights: Weights
    progress: Progress
    ledger: Ledger
    num_replaced: int
    learner_state: Callable[[], Arrays]
    broadcast_s: float


class Callback(Protocol):
    """Who watches: called on the loop's own thread."""

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        """A group has finished, and is counted in the rollouts of the update under way."""
        ...

    def on_update(self, record: UpdateRecord) -> None:
        """An update has ended, and its weights are on their way to the actors."""
        ...


@dataclass(frozen=True)
class TrainResult:
    """How training ended.

    Attributes:
        ledger: Where every group that was dispatched has gone.
        exhausted: Why the search for mixed groups ended early, or none after all updates.
        last: Rollouts of the update that was under way when the search ended, or none.
    """

    ledger: Ledger = Ledger()  # noqa: RUF009 (frozen)
    exhausted: SearchExhaustedError | None = None
    last: RolloutStats | None = None
