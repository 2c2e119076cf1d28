"""Room for actors on the nodes of a cluster: how much there is, and what is said where it is too little."""

import time
from collections.abc import Callable

from ript_ray.errors import WorkerError

LOOK_S = 0.5
"""How often the nodes are looked at while places are to be filled."""


class ActorCapacity:
    """Knows how many actors more the nodes hold, and says what was asked for, what is there, what is missing."""

    def __init__(self, count: Callable[[], int], num_wanted: int, *, report: Callable[[str], None], timeout_s: float):
        """Look at nothing yet.

        Args:
            count: How many actors the nodes that are alive hold in all.
            num_wanted: How many are asked for.
            report: Told of a shortage, of every change of it, and of its end.
            timeout_s: How long there may be no actor at all, in seconds.
        """
        self._count = count
        self._num_wanted = num_wanted
        self._report = report
        self._timeout_s = timeout_s
        self._next_look = 0.0
        self._empty_since: float | None = None
        self._last_message = ""

    def free(self, num_actors: int, num_due: int) -> int:
        """How many of the places that are due can be filled now, 0 where it is too early to look again.

        Negative where there are more actors than room: so many of those that are starting never will.

        Raises:
            WorkerError: There has been neither an actor nor room for one for too long.
        """
        now = time.monotonic()
        if now < self._next_look:
            return 0
        self._next_look = now + LOOK_S
        capacity = self._count()
        free = capacity - num_actors
        self._report_shortage(capacity, num_actors, missing=num_due - free)
        self._check_timeout(now, capacity + num_actors)
        return min(free, num_due)

    def _report_shortage(self, capacity: int, num_actors: int, missing: int) -> None:
        text = ""
        if missing > 0:
            text = (
                f"rollout actors: asked for {self._num_wanted}, got {self._num_wanted - missing}, waiting for "
                f"{missing}; the nodes that are alive hold {capacity} in all"
            )
        if text != self._last_message:
            self._report(text or f"rollout actors: asked for {self._num_wanted}, got all")
        self._last_message = text

    def _check_timeout(self, now: float, num_possible: int) -> None:
        if num_possible:
            self._empty_since = None
            return
        self._empty_since = self._empty_since or now
        if now - self._empty_since > self._timeout_s:
            raise WorkerError(f"{self._last_message}; none has come within {self._timeout_s:g} s")
