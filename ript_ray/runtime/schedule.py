"""Indexes of idle actors and running requests, so that no decision of the pool scans all actors."""

import heapq

from ript_ray.runtime.actor_slot import ActorSlot, RollingOut
from ript_ray.types import RolloutRequest, Version


class IdleActors:
    """Idle actors: those with the fewest failures first, among them those that were started first."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, ActorSlot]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, actor: ActorSlot) -> None:
        """Add an actor that has become idle."""
        heapq.heappush(self._heap, (actor.num_failures, actor.order, actor))

    def take(self) -> ActorSlot:
        """Remove and return the first actor."""
        return heapq.heappop(self._heap)[2]


class RunningRequests:
    """The actors that run each request, in the order of dispatch; copies whose answer is not needed are not counted."""

    def __init__(self) -> None:
        self._index_of: dict[int, int] = {}  # by slot, in order of dispatch
        self._actors_of: dict[int, list[ActorSlot]] = {}

    def __len__(self) -> int:
        """Return the number of copies."""
        return len(self._index_of)

    def __contains__(self, index: int) -> bool:
        return index in self._actors_of

    def add(self, actor: ActorSlot, index: int) -> None:
        """Note that an actor runs request `index`."""
        self._index_of[actor.slot] = index
        self._actors_of.setdefault(index, []).append(actor)

    def discard(self, actor: ActorSlot) -> None:
        """Forget the copy that an actor runs, if any."""
        index = self._index_of.pop(actor.slot, None)
        if index is not None:
            self._actors_of[index].remove(actor)
            if not self._actors_of[index]:
                del self._actors_of[index]

    def finish(self, index: int) -> list[ActorSlot]:
        """Forget request `index`; return the actors that still run it."""
        actors = self._actors_of.pop(index, [])
        for actor in actors:
            del self._index_of[actor.slot]
        return actors

    def oldest_single(self, version: Version | None, started_before: float) -> RolloutRequest | None:
        """Return the longest-running request that one actor alone runs, with weights `version`, or none."""
        for index in self._index_of.values():
            if len(self._actors_of[index]) > 1:
                continue
            (actor,) = self._actors_of[index]
            assert isinstance(actor.call, RollingOut)
            if actor.call.started >= started_before:
                return None  # all later ones were started later
            if actor.version == version:
                return actor.call.request
        return None
