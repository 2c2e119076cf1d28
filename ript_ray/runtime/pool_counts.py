"""What an actor pool has counted and measured."""

import logging
from collections import Counter, deque
from dataclasses import dataclass, field

from ript_ray.errors import WorkerError
from ript_ray.rl.protocols import DispatchCounts
from ript_ray.runtime.ray_calls import describe
from ript_ray.runtime.schedule import RequestKey, key_of
from ript_ray.types import RolloutRequest

logger = logging.getLogger(__name__)


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
        attempts: Failed attempts at each unfinished request.
        durations_s: Durations of the latest requests, in seconds.
    """

    started: int = 0
    dispatched: int = 0
    lost: int = 0
    duplicated: int = 0
    speculated: int = 0
    replaced: int = 0
    attempts: Counter[RequestKey] = field(default_factory=Counter)
    durations_s: deque[float] = field(default_factory=lambda: deque(maxlen=64))

    def count_attempt(self, request: RolloutRequest, error: Exception, max_attempts: int) -> None:
        """Count a failed attempt at a request.

        Raises:
            WorkerError: It was the last one.
        """
        self.attempts[key_of(request)] += 1
        what = f"group {request.index} ({request.contexts[0].task}) failed"
        num_attempts = self.attempts[key_of(request)]
        if num_attempts >= max_attempts:
            raise WorkerError(f"{what} {max_attempts} times, last error: {describe(error)}") from error
        logger.warning("%s, attempt %d of %d: %s", what, num_attempts, max_attempts, describe(error))

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
