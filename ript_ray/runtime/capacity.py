"""Cluster capacity for rollout actors, with shortage warnings."""

import logging
import time
from collections.abc import Callable

from ript_ray.errors import WorkerError

CHECK_S = 0.5
"""Interval between two looks at the cluster's nodes while slots are empty, in seconds."""

logger = logging.getLogger(__name__)


class ActorCapacity:
    """Tells how many more actors fit on the nodes; logs every shortage, every change of it and its end."""

    def __init__(self, count: Callable[[], int], num_wanted: int, *, timeout_s: float):
        """Store the arguments; the nodes are first counted by `free`.

        Args:
            count: Returns the total number of actors that fit on the live nodes.
            num_wanted: Actors requested.
            timeout_s: Longest time without any actor, in seconds.
        """
        self._count = count
        self._num_wanted = num_wanted
        self._timeout_s = timeout_s
        self._next_check = 0.0
        self._empty_since: float | None = None
        self._last_message = ""

    def free(self, num_actors: int, num_due: int) -> int:
        """Return how many of the `num_due` empty slots can be filled now, 0 if it is too early to count again.

        Negative if there are more actors than capacity: that many of the starting ones will never start.

        Raises:
            WorkerError: There has been neither an actor nor capacity for one for `timeout_s`.
        """
        now = time.monotonic()
        if now < self._next_check:
            return 0
        self._next_check = now + CHECK_S
        capacity = self._count()
        free = capacity - num_actors
        self._log_shortage(capacity, missing=num_due - free)
        self._check_timeout(now, capacity + num_actors)
        return min(free, num_due)

    def _log_shortage(self, capacity: int, missing: int) -> None:
        text = ""
        if missing > 0:
            text = (
                f"rollout actors: asked for {self._num_wanted}, got {self._num_wanted - missing}, waiting for "
                f"{missing}; the live nodes have capacity for {capacity}"
            )
        if text and text != self._last_message:
            logger.warning(text)
        elif self._last_message and not text:
            logger.info("rollout actors: asked for %d, got all", self._num_wanted)
        self._last_message = text

    def _check_timeout(self, now: float, num_possible: int) -> None:
        if num_possible:
            self._empty_since = None
            return
        self._empty_since = self._empty_since or now
        if now - self._empty_since > self._timeout_s:
            raise WorkerError(f"{self._last_message}; none became available within {self._timeout_s:g} s")
