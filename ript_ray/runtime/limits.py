"""Timeouts of the actor pool, and the faults that it tolerates."""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

MAX_INVALID = 3
"""Consecutive malformed groups after which an actor is replaced."""

MAX_UPDATE_ATTEMPTS = 3
"""Times that learners may die or hang before the same update has finished."""

MAX_FAILURES = 3
"""Consecutive requests raising an exception after which an actor is replaced."""

NODE_VERDICT_S = 60.0
"""Time within which Ray finds that a node has died, in seconds; the health checks of `clusters/` take 30 s."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Timeouts and retry limits.

    Attributes:
        start_timeout_s: Timeout for starting an actor and for loading weights, in seconds.
        group_timeout_s: Shortest timeout for one request, in seconds.
        max_replacements: Actors that may be replaced within `replacement_period_s`; those lost with their node do not
            count.
        straggler_factor: A request that runs for this multiple of the median duration is also run by an idle actor;
            inf to disable.
        min_straggler_s: Shortest duration of a straggler, in seconds.
        max_attempts: Failed attempts after which a request itself, rather than its actors, counts as the cause.
        max_failed_starts: Consecutive failed starts that are always allowed; with more actors, one per actor.
            Bounds the time spent on an actor that can never start.
        max_killed_starts: The same for actors that were killed while they started: the cause may lie outside.
        replacement_period_s: Period of `max_replacements`, in seconds.
    """

    start_timeout_s: float
    group_timeout_s: float
    max_replacements: int
    straggler_factor: float = 3.0
    min_straggler_s: float = 0.5
    max_attempts: int = 5
    max_failed_starts: int = 3
    max_killed_starts: int = 10
    replacement_period_s: float = 3600.0

    def request_timeout_s(self, *, num_failures: int, longest_s: float) -> float:
        """Return the timeout of a request: it adapts to requests that take longer than expected.

        Args:
            num_failures: Failed attempts at this request; each doubles its timeout.
            longest_s: Longest duration of the latest finished requests, 0 before the first; three times as long is
                always allowed.
        """
        return max(self.group_timeout_s * 2.0**num_failures, 3.0 * longest_s)

    def backoff_s(self, num_deaths: int) -> float:
        """Return the backoff before refilling a slot that lost `num_deaths` actors since its last finished request.

        Zero for the first two, then doubling up to 30 s.
        """
        return 0.0 if num_deaths <= 2 else min(30.0, 0.5 * 2.0 ** (num_deaths - 2))


class RecentFaults:
    """Failures of actors within a period, without those that the death of their node explains.

    When a node dies, calls to its actors may fail before Ray finds that it is dead. Such a failure counts once the
    node has outlived it by `NODE_VERDICT_S`.
    """

    def __init__(self, period_s: float):
        self._period_s = period_s
        self._faults: deque[tuple[float, str | None, bool]] = deque()

    def add(self, now: float, node: str | None, *, is_certain: bool) -> None:
        """Add a failure.

        Args:
            now: Its time.
            node: Id of the actor's node, or none if that is not known.
            is_certain: Whether the actor, and not its node, is the cause.
        """
        self._faults.append((now, node, is_certain))

    def count(self, now: float, live_nodes: Collection[str]) -> int:
        """Return the number of faults within the last period."""
        while self._faults and self._faults[0][0] < now - self._period_s:
            self._faults.popleft()
        return sum(
            is_certain or (moment < now - NODE_VERDICT_S and (node is None or node in live_nodes))
            for moment, node, is_certain in self._faults
        )
