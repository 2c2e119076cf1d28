"""Indexes of idle actors and running requests, so that no decision of the pool scans all actors."""

import heapq

from ript_ray.runtime.actor_slot import ActorSlot, RollingOut
from ript_ray.types import GroupSummary, RolloutRequest, Version

RequestKey = tuple[int, int]
"""Index of a request, and number of its part."""


def key_of(request: RolloutRequest | GroupSummary) -> RequestKey:
    """Return what tells a request, or its result, from all others."""
    return request.index, request.part


class IdleActors:
    """Idle actors: those with the fewest failures first, among them those that were started first."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, ActorSlot]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, actor: ActorSlot) -> None:
        """Add an actor that has become idle."""
        heapq.heappush(self._heap, (actor.num_failures, actor.order, actor))

    @property
    def first(self) -> ActorSlot:
        """The actor that `take` returns."""
        return self._heap[0][2]

    def take(self) -> ActorSlot:
        """Remove and return the first actor."""
        return heapq.heappop(self._heap)[2]


class RunningRequests:
    """The actors that run each request, in the order of dispatch; copies whose answer is not needed are not counted."""

    def __init__(self) -> None:
        self._key_of: dict[int, RequestKey] = {}  # by slot, in order of dispatch
        self._actors_of: dict[RequestKey, list[ActorSlot]] = {}

    def __len__(self) -> int:
        """Return the number of copies."""
        return len(self._key_of)

    def __contains__(self, key: RequestKey) -> bool:
        return key in self._actors_of

    def add(self, actor: ActorSlot, key: RequestKey) -> None:
        """Note that an actor runs a request."""
        self._key_of[actor.slot] = key
        self._actors_of.setdefault(key, []).append(actor)

    def discard(self, actor: ActorSlot) -> None:
        """Forget the copy that an actor runs, if any."""
        key = self._key_of.pop(actor.slot, None)
        if key is not None:
            self._actors_of[key].remove(actor)
            if not self._actors_of[key]:
                del self._actors_of[key]

    def finish(self, key: RequestKey) -> list[ActorSlot]:
        """Forget a request; return the actors that still run it."""
        actors = self._actors_of.pop(key, [])
        for actor in actors:
            del self._key_of[actor.slot]
        return actors

    def oldest_single(self, version: Version | None, processor: str, started_before: float) -> RolloutRequest | None:
        """Return the longest-running request that one actor alone runs, of that weights and processor, or none."""
        for key in self._key_of.values():
            if len(self._actors_of[key]) > 1:
                continue
            (actor,) = self._actors_of[key]
            assert isinstance(actor.call, RollingOut)
            if actor.call.started >= started_before:
                return None  # all later ones were started later
            if actor.version == version and actor.processor == processor:
                return actor.call.request
        return None
