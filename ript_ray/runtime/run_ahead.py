"""Groups that idle actors roll out before the training loop launches them.

The loop launches groups in index order and only as many as its batch may need, so without this most actors idle while
the last mixed groups of a batch are searched for. Here they roll out the indices that come next. The loop does not
notice: when it launches such an index, the result is there early, and it is the same result, because no new weights
may come in between. Which groups form a batch therefore stays as it was: the first mixed ones by index.
"""

from collections import deque
from collections.abc import Callable

import ray

from ript_ray.types import GroupSummary, RolloutRequest

Finished = tuple[GroupSummary, ray.ObjectRef]
"""Summary of a finished request, and a reference to its group."""


class RunAhead:
    """Keeps the results of requests until they are launched."""

    def __init__(self, limit: int):
        """Run at most `limit` requests ahead, finished ones included; 0 to run none."""
        self._limit = limit
        self._request_of: Callable[[int], RolloutRequest] | None = None
        self._next_index = 0
        self._unclaimed: dict[int, Finished | None] = {}  # None while it is running
        self._claimed: deque[Finished] = deque()
        self.num_dropped = 0

    @property
    def num_held(self) -> int:
        """Finished requests that the training loop has not received."""
        return len(self._claimed) + sum(finished is not None for finished in self._unclaimed.values())

    def start(self, request_of: Callable[[int], RolloutRequest], first_index: int) -> None:
        """Allow requests from `first_index` on, the one that will be launched next."""
        self._request_of = request_of
        self._next_index = max(self._next_index, first_index)

    def stop(self) -> list[int]:
        """Drop all results that nobody has claimed; returns the indices that are still running."""
        running = [index for index, finished in self._unclaimed.items() if finished is None]
        self.num_dropped += len(self._unclaimed) - len(running)
        self._unclaimed.clear()
        self._request_of, self._next_index = None, 0
        return running

    def next_request(self) -> RolloutRequest | None:
        """Return the next request for an actor that has nothing else to do, if any."""
        if self._request_of is None or len(self._unclaimed) >= self._limit:
            return None
        request = self._request_of(self._next_index)
        self._unclaimed[request.index] = None
        self._next_index += 1
        return request

    def claim(self, index: int) -> bool:
        """Launch request `index`; returns whether it is running or has finished already."""
        self._next_index = max(self._next_index, index + 1)
        if index not in self._unclaimed:
            return False
        if finished := self._unclaimed.pop(index):
            self._claimed.append(finished)
        return True

    def next_claimed(self) -> Finished | None:
        """Return a finished request that was launched, if any."""
        return self._claimed.popleft() if self._claimed else None

    def finish(self, finished: Finished) -> None:
        """Take the result of a request: at once if it was launched, else when it will be."""
        index = finished[0].index
        if index in self._unclaimed:
            self._unclaimed[index] = finished
        else:
            self._claimed.append(finished)

    def abandon(self, index: int) -> bool:
        """Give up request `index`, which has failed, if it is not launched yet; returns whether that is so."""
        if index not in self._unclaimed:
            return False
        del self._unclaimed[index]
        return True
