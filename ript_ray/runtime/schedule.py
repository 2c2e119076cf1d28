"""Indexes of idle actors and running requests, so that no decision of the pool scans all actors."""

import heapq

from ript_ray.runtime.actor_slot import ActorSlot, RollingOut
from ript_ray.types import GroupSummary, RolloutRequest

RequestKey = tuple[int, int]
"""Index of a request, and number of its part."""


def key_of(request: RolloutRequest | GroupSummary) -> RequestKey:
    """Return what tells a request, or its result, from all others."""
    return request.index, request.part


class IdleActors:
    """Actors that may take on a group: those with the fewest failures first, then those with the fewest groups.

    Among these, those that were started first.
    """

    def __init__(self, groups_per_actor: int = 1):
        """Begin with none; each may work on so many groups at a time."""
        self._groups_per_actor = groups_per_actor
        self._heap: list[tuple[int, int, int, ActorSlot]] = []  # an entry for each group that an actor may take on
        self._num_entries: dict[ActorSlot, int] = {}  # those of actors that are not here are void

    def __len__(self) -> int:
        """Return the number of actors."""
        return len(self._num_entries)

    def add(self, actor: ActorSlot) -> None:
        """Add an actor that waits for fewer groups than before, or for the first ones."""
        num_running, num_known = len(actor.calls), self._num_entries.get(actor, 0)
        for number in range(num_running, self._groups_per_actor - num_known):
            heapq.heappush(self._heap, (actor.num_failures, number, actor.order, actor))
        self._num_entries[actor] = self._groups_per_actor - num_running

    @property
    def first(self) -> ActorSlot:
        """The actor that `take` returns."""
        while self._heap[0][-1] not in self._num_entries:
            heapq.heappop(self._heap)
        return self._heap[0][-1]

    def take(self) -> ActorSlot:
        """Return the first actor, for one group."""
        actor = self.first
        heapq.heappop(self._heap)
        self._num_entries[actor] -= 1
        if not self._num_entries[actor]:
            del self._num_entries[actor]
        return actor

    def take_all(self) -> list[ActorSlot]:
        """Remove and return all actors."""
        actors = list(self._num_entries)
        self._heap.clear()
        self._num_entries.clear()
        return actors

    def discard(self, actor: ActorSlot) -> None:
        """Remove an actor for good, if it is here."""
        self._num_entries.pop(actor, None)


class RunningRequests:
    """The calls that run each request, in the order of dispatch; copies whose answer is not needed are not counted."""

    def __init__(self) -> None:
        self._key_of: dict[RollingOut, RequestKey] = {}  # in order of dispatch
        self._calls_of: dict[RequestKey, list[RollingOut]] = {}

    def __len__(self) -> int:
        """Return the number of copies."""
        return len(self._key_of)

    def __contains__(self, key: RequestKey) -> bool:
        return key in self._calls_of

    def add(self, call: RollingOut) -> None:
        """Note that an actor runs a request."""
        assert call.request is not None
        key = self._key_of[call] = key_of(call.request)
        self._calls_of.setdefault(key, []).append(call)

    def discard(self, call: RollingOut) -> None:
        """Forget a copy, unless its request is forgotten already."""
        key = self._key_of.pop(call, None)
        if key is not None:
            self._calls_of[key].remove(call)
            if not self._calls_of[key]:
                del self._calls_of[key]

    def finish(self, key: RequestKey) -> list[RollingOut]:
        """Forget a request; return the calls that still run it."""
        calls = self._calls_of.pop(key, [])
        for call in calls:
            del self._key_of[call]
        return calls

    def oldest_single(self, actor: ActorSlot, started_before: float) -> RolloutRequest | None:
        """Return the longest-running request that one other actor alone runs, with weights and processor of this one.

        Returns:
            The request, or none if there is none that was started before that moment.
        """
        for call, key in self._key_of.items():
            if len(self._calls_of[key]) > 1:
                continue
            if call.started >= started_before:
                return None  # all later ones were started later
            other = call.actor
            if other is not actor and (other.version, other.processor) == (actor.version, actor.processor):
                return call.request
        return None
