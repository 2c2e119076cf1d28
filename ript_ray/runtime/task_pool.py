"""Map a pure function over many items, in Ray worker processes or in this process."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import ray

from ript_ray.errors import RiptError, WorkerError
from ript_ray.runtime.autoscaler import RoomRequest
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.factory import session
from ript_ray.runtime.nodes import live_nodes
from ript_ray.runtime.ray_calls import describe

MAX_ATTEMPTS = 3
"""Attempts per item before the item itself, rather than a process or node, counts as the cause of failure."""

POLL_S = 0.5
"""Interval between deadline checks while no task finishes, in seconds."""

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class TaskPool(Protocol[Item, Result_co]):
    """Runs items in any order."""

    @property
    def num_free(self) -> int:
        """Number of items that can be submitted now without queuing."""
        ...

    def submit(self, item: Item) -> None:
        """Start work on an item."""
        ...

    def next_done(self) -> tuple[Item, Result_co]:
        """Wait for the next finished item and return it with its result; at least one must have been submitted.

        Raises:
            RiptError: The function raised it.
            WorkerError: An item failed `MAX_ATTEMPTS` times.
        """
        ...


@contextlib.contextmanager
def open_task_pool(function: Callable[[Item], Result], cluster: Cluster) -> Iterator[TaskPool[Item, Result]]:
    """Start workers for a function and stop them at the end, canceling running tasks.

    Args:
        function: Called in other processes, possibly several times per item: its result must depend on the item
            alone.
        cluster: Where to run; `group_timeout_s` limits one item.

    Raises:
        WorkerError: There is no Ray cluster at the address, or Ray does not start.
        ConfigError: The requested processes do not fit.
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
    """Runs one item at a time in this process."""

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
    """Runs as many items at once as the live nodes have capacity for."""

    def __init__(self, function: Callable[[Item], Result], cluster: Cluster):
        # No policy is run or trained here.
        self._cluster = cluster = replace(cluster, gpus_per_actor=0.0, learner_gpus=0.0, learner_cpus=0.0)

        def work(item: Item) -> Result:
            return function(item)  # Ray accepts plain functions only, not every callable

        # Ray's own retries have no timeout, so they are disabled.
        options = {"num_cpus": cluster.cpus_per_actor, "max_retries": 0, "scheduling_strategy": "SPREAD"}
        self._remote = ray.remote(**options)(work)
        self._runs: dict[ray.ObjectRef, _Run[Item]] = {}
        self._request = RoomRequest(cluster, 0)
        if cluster.num_actors is None:
            cluster.count_actors(live_nodes())

    @property
    def num_free(self) -> int:
        capacity = max(1, self._cluster.num_fitting(live_nodes()))  # with no node left: wait for one
        wanted = self._cluster.num_actors or capacity
        if capacity < wanted:
            self._request.send()
        return min(wanted, capacity) - len(self._runs)

    def submit(self, item: Item) -> None:
        self._start(item, attempt=1)

    def next_done(self) -> tuple[Item, Result]:
        while True:
            ready, pending = ray.wait(list(self._runs), timeout=POLL_S)
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
            for reference in pending:
                if self._runs[reference].deadline <= time.monotonic():
                    ray.cancel(reference, force=True)
                    timeout_s = self._cluster.group_timeout_s
                    self._retry(self._runs.pop(reference), TimeoutError(f"not finished within {timeout_s:g} s"))

    def cancel(self) -> None:
        """Cancel running tasks."""
        self._request.end()
        for reference in self._runs:
            ray.cancel(reference, force=True)
        self._runs.clear()

    def _start(self, item: Item, attempt: int) -> None:
        deadline = time.monotonic() + self._cluster.group_timeout_s
        self._runs[self._remote.remote(item)] = _Run(item, attempt, deadline)

    def _retry(self, run: _Run[Item], error: Exception) -> None:
        if run.attempt == MAX_ATTEMPTS:
            raise WorkerError(f"{run.item} failed {MAX_ATTEMPTS} times, last error: {describe(error)}")
        logger.warning("%s failed, attempt %d of %d: %s", run.item, run.attempt, MAX_ATTEMPTS, describe(error))
        self._start(run.item, run.attempt + 1)
