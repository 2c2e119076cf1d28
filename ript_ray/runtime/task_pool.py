"""Independent pieces of work: a pure function over many items, in Ray's worker processes or in this one."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import ray

from ript_ray.errors import RiptError, WorkerError
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.factory import session
from ript_ray.runtime.ray_calls import describe
from ript_ray.runtime.ray_runtime import node_cpus

MAX_ATTEMPTS = 3
"""Times that a piece of work is tried before it, and not a process or a node, is taken for the cause."""

POLL_S = 0.5
"""How often deadlines are looked at while nothing is done."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class TaskPool(Protocol[Item, Result_co]):
    """Pieces of work that are done in any order."""

    @property
    def num_free(self) -> int:
        """How many items can be worked on beyond those that are."""
        ...

    def submit(self, item: Item) -> None:
        """Begin to work on an item."""
        ...

    def next_done(self) -> tuple[Item, Result_co]:
        """Wait for the next item that is done; there must be one that was begun.

        Raises:
            RiptError: The function raised it.
            WorkerError: An item failed wherever it was tried.
        """
        ...


@contextlib.contextmanager
def open_task_pool(function: Callable[[Item], Result], cluster: Cluster) -> Iterator[TaskPool[Item, Result]]:
    """Start what works on items, and stop it at the end, whatever is still at work.

    Args:
        function: Is called in another process, maybe several times for one item: what it gives must depend on
            its item alone.
        cluster: Where; an item may take `group_timeout_s`.

    Raises:
        WorkerError: There is no Ray cluster at the address, or Ray does not start.
        ConfigError: There is no room for the processes asked for.
    """
    with session(cluster):
        if cluster.in_process:
            yield _SerialTaskPool(function)
            return
        tasks = _RayTaskPool(function, cluster)
        try:
            yield tasks
        finally:
            tasks.cancel()


class _SerialTaskPool(Generic[Item, Result]):
    """One after the other, in this process."""

    def __init__(self, function: Callable[[Item], Result]):
        self._function = function
        self._items: list[Item] = []

    @property
    def num_free(self) -> int:
        return 1 - len(self._items)

    def submit(self, item: Item) -> None:
        self._items.append(item)

    def next_done(self) -> tuple[Item, Result]:
        item = self._items.pop(0)
        return item, self._function(item)


@dataclass(frozen=True)
class _Run(Generic[Item]):
    item: Item
    attempt: int
    deadline: float


class _RayTaskPool(Generic[Item, Result]):
    """As many at once as the nodes that are alive have room for."""

    def __init__(self, function: Callable[[Item], Result], cluster: Cluster):
        self._cluster = cluster

        def work(item: Item) -> Result:
            return function(item)  # Ray takes functions alone, not everything that can be called

        # Ray's own retries know no deadline, so there are none.
        options = {"num_cpus": cluster.cpus_per_actor, "max_retries": 0, "scheduling_strategy": "SPREAD"}
        self._remote = ray.remote(**options)(work)
        self._runs: dict[ray.ObjectRef, _Run[Item]] = {}
        self._num_slots = cluster.num_actors or cluster.count_actors(node_cpus())

    @property
    def num_free(self) -> int:
        room = max(1, self._cluster.num_fitting(node_cpus()))  # with no node left: wait for one
        return min(self._num_slots, room) - len(self._runs)

    def submit(self, item: Item) -> None:
        self._start(item, attempt=1)

    def next_done(self) -> tuple[Item, Result]:
        while True:
            ready, late = ray.wait(list(self._runs), timeout=POLL_S)
            for reference in ready:
                run = self._runs.pop(reference)
                try:
                    return run.item, ray.get(reference, timeout=self._cluster.start_timeout_s)
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, RiptError):
                        raise error.cause from None
                    self._retry(run, error)
                except ray.exceptions.RayError as error:
                    self._retry(run, error)
            for reference in late:
                if self._runs[reference].deadline <= time.monotonic():
                    ray.cancel(reference, force=True)
                    timeout_s = self._cluster.group_timeout_s
                    self._retry(self._runs.pop(reference), TimeoutError(f"not done within {timeout_s:g} s"))

    def cancel(self) -> None:
        """End what is still at work."""
        for reference in self._runs:
            ray.cancel(reference, force=True)
        self._runs.clear()

    def _start(self, item: Item, attempt: int) -> None:
        deadline = time.monotonic() + self._cluster.group_timeout_s
        self._runs[self._remote.remote(item)] = _Run(item, attempt, deadline)

    def _retry(self, run: _Run[Item], error: Exception) -> None:
        if run.attempt == MAX_ATTEMPTS:
            raise WorkerError(f"{run.item} failed {MAX_ATTEMPTS} times, the last time because of {describe(error)}")
        self._start(run.item, run.attempt + 1)
