"""Groups that idle actors roll out before the training loop launches them.

The loop launches groups in index order and only as many as its batch may need, so without this most actors idle while
the last mixed groups of a batch are searched for. Here they roll out the indices that come next. The loop does not
notice: when it launches such an index, the result is there early, and it is the same result, because no new weights
may come in between. Which groups form a batch therefore stays as it was: the first mixed ones by index.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import ray

from ript_ray.rl.parts import split
from ript_ray.runtime.schedule import RequestKey, key_of
from ript_ray.types import GroupSummary, RolloutRequest

Finished = tuple[GroupSummary, tuple[ray.ObjectRef, ...]]
"""Summary of a finished group, and references to its parts."""


@dataclass
class _Ahead:
    """A group that is not launched yet.

    Attributes:
        keys: Its parts.
        waiting: Parts that no actor has begun.
        failed: Parts that failed; they are tried again once the group is launched.
        finished: The result, once all parts are there.
    """

    keys: tuple[RequestKey, ...]
    waiting: deque[RolloutRequest]
    failed: list[RolloutRequest] = field(default_factory=list)
    finished: Finished | None = None


class RunAhead:
    """Keeps the results of groups until they are launched.

    Attributes:
        limit: Most groups that are run ahead, finished ones included.
        num_dropped: Finished requests that were dropped.
    """

    def __init__(self, limit: int):
        """Run at most `limit` groups ahead, finished ones included; 0 to run none."""
        self.limit = limit
        self._request_of: Callable[[int], RolloutRequest] | None = None
        self._next_index = 0
        self._unclaimed: dict[int, _Ahead] = {}
        self._newest: _Ahead | None = None  # the only one that may have parts waiting
        self._launched: deque[Finished] = deque()
        self.num_dropped = 0

    @property
    def num_held(self) -> int:
        """Finished requests, parts of groups counted each, that the training loop has not received."""
        held = [ahead.finished for ahead in self._unclaimed.values() if ahead.finished]
        return sum(len(parts) for _, parts in (*held, *self._launched))

    def start(self, request_of: Callable[[int], RolloutRequest], first_index: int) -> None:
        """Allow groups from `first_index` on, the one that will be launched next."""
        self._request_of = request_of
        self._next_index = max(self._next_index, first_index)

    def stop(self) -> list[RequestKey]:
        """Drop all groups that are not launched; returns their requests that may be running."""
        unfinished = [key for ahead in self._unclaimed.values() if ahead.finished is None for key in ahead.keys]
        self.num_dropped += self.num_held - sum(len(parts) for _, parts in self._launched)
        self._unclaimed.clear()
        self._newest, self._request_of, self._next_index = None, None, 0
        return unfinished

    def next_request(self) -> RolloutRequest | None:
        """Return the next request for an actor that has nothing else to do, if any."""
        if self._newest and self._newest.waiting:
            return self._newest.waiting.popleft()
        if self._request_of is None or len(self._unclaimed) >= self.limit:
            return None
        parts = split(self._request_of(self._next_index))
        self._newest = _Ahead(tuple(key_of(part) for part in parts), deque(parts))
        self._unclaimed[self._next_index] = self._newest
        self._next_index += 1
        return self._newest.waiting.popleft()

    def launch(self, request: RolloutRequest) -> list[RolloutRequest]:
        """Launch a group; returns those of its parts that are neither running nor finished."""
        self._next_index = max(self._next_index, request.index + 1)
        ahead = self._unclaimed.pop(request.index, None)
        if ahead is None:
            return split(request)
        if ahead.finished:
            self._launched.append(ahead.finished)
        missing = [*ahead.failed, *ahead.waiting]
        ahead.waiting.clear()
        return missing

    def next_launched(self) -> Finished | None:
        """Return the next finished group that is launched, if any."""
        return self._launched.popleft() if self._launched else None

    def take_launched(self, index: int) -> Finished | None:
        """Return group `index` if it is launched and has finished, else none."""
        found = next((finished for finished in self._launched if finished[0].index == index), None)
        if found:
            self._launched.remove(found)
        return found

    def finish(self, finished: Finished) -> None:
        """Take the result of a group: to be returned at once if it is launched, else when it will be."""
        if ahead := self._unclaimed.get(finished[0].index):
            ahead.finished = finished
        else:
            self._launched.append(finished)

    def postpone(self, request: RolloutRequest) -> bool:
        """Put off a request that failed until its group is launched; returns whether it is not launched yet."""
        if ahead := self._unclaimed.get(request.index):
            ahead.failed.append(request)
        return ahead is not None
