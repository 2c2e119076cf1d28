"""What an actor pool has counted and measured."""

from collections import Counter, deque
from dataclasses import dataclass, field

from ript_ray.rl.protocols import DispatchCounts
from ript_ray.runtime.schedule import RequestKey


@dataclass
class PoolCounts:
    """Counts of a pool since it began.

    Attributes:
        started: Actors started.
        dispatched: Copies of requests sent to an actor.
        lost: Copies lost with an actor or its environment.
        duplicated: Copies cancelled because another one was faster.
        speculated: Copies run ahead of need and cancelled.
        replaced: Actors replaced.
        failed_starts: Consecutive failed starts, without those of actors that were killed.
        killed_starts: Actors that were killed while they started, since one has started.
        deaths: Actors that each slot lost since its last finished request.
        attempts: Failed attempts at each unfinished request.
        durations_s: Durations of the latest requests, in seconds.
    """

    started: int = 0
    dispatched: int = 0
    lost: int = 0
    duplicated: int = 0
    speculated: int = 0
    replaced: int = 0
    failed_starts: int = 0
    killed_starts: int = 0
    deaths: Counter[int] = field(default_factory=Counter)
    attempts: Counter[RequestKey] = field(default_factory=Counter)
    durations_s: deque[float] = field(default_factory=lambda: deque(maxlen=64))

    def dispatch_counts(self, num_running: int) -> DispatchCounts:
        """Return what the training loop needs to know, with `num_running` copies running now."""
        return DispatchCounts(
            num_dispatched=self.dispatched,
            num_lost=self.lost,
            num_duplicated=self.duplicated,
            num_speculated=self.speculated,
            num_running=num_running,
            num_replaced=self.replaced,
        )
