"""The pool gives an actor as many groups as it works on in turns; weights change between them, and none is lost."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from ript_ray.runtime.actor_pool import ActorPool
from ript_ray.runtime.capacity import ActorCapacity, Room
from ript_ray.runtime.limits import Limits
from ript_ray.runtime.remote_logs import Logged
from ript_ray.runtime.run_ahead import RunAhead
from ript_ray.types import Context, GroupSummary, RolloutRequest, Version, Weights

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

CONTEXT = Context("left", "go left", (0.0, -0.9))
DEADLINE_S = 300


class Actor:
    """Two requests meet in it; those of even index take longer, and one of them kills it. Refuses weights meanwhile."""

    def __init__(self, mark: Path):
        self._mark = mark
        self._barrier = threading.Barrier(2, timeout=DEADLINE_S)
        self._num_running = 0
        self._version = Version(0)
        self._last = threading.Lock()

    def load_logged(self, weights: Weights) -> Logged[str]:
        assert self._num_running == 0
        self._version = weights.version
        return Logged(weights.checksum, ())

    def roll_logged(self, request: RolloutRequest) -> tuple[Logged[GroupSummary], None]:
        self._num_running += 1
        self._barrier.wait()
        if request.index % 2 == 0:
            time.sleep(0.5)
            with self._last:  # held to the end of the process, so that the other one does not get past
                if not self._mark.exists():
                    self._mark.touch()
                    os._exit(1)
        self._num_running -= 1
        return Logged(GroupSummary(request.index, self._version, (1.0,), (1,), 0, (), None), ()), None


def open_pool(start_actor: Callable[[int], Any]) -> ActorPool:
    limits = Limits(start_timeout_s=DEADLINE_S, group_timeout_s=DEADLINE_S, max_replacements=1)
    capacity = ActorCapacity(lambda: Room(1), 1, timeout_s=DEADLINE_S)
    return ActorPool(start_actor, limits, capacity=capacity, ahead=RunAhead(0), groups_per_actor=2)


def weights_of(version: int) -> Weights:
    return Weights(Version(version), f"of {version}", (), np.zeros(0, np.uint8))


def test_two_groups_run_in_one_actor_new_weights_wait_for_both_and_both_are_retried_if_it_dies(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    pool = open_pool(lambda slot: ray.remote(num_cpus=0.1, max_concurrency=2)(Actor).remote(mark))
    summaries: list[GroupSummary] = []

    def finish(num_requests: int) -> None:
        while len(summaries) < num_requests:
            pool.poll()
            while finished := pool.next_finished():
                summaries.append(finished[0])

    def submit(*indices: int) -> None:
        for index in indices:
            pool.submit(RolloutRequest(index, (CONTEXT,), ((index,),)))

    try:
        mark.touch()
        submit(0, 1)
        while pool.dispatch_counts.num_dispatched < 2:
            pool.poll()
        pool.load(ray.put(weights_of(1)), weights_of(1))
        submit(2, 3)
        finish(4)
        assert {summary.index: summary.version for summary in summaries} == {0: 0, 1: 0, 2: 1, 3: 1}
        summaries.clear()
        mark.unlink()
        submit(4, 6)  # both are still running when it dies
        finish(2)
    finally:
        pool.kill()
    counts = pool.dispatch_counts
    assert (counts.num_dispatched, counts.num_lost, counts.num_replaced, counts.num_running) == (8, 2, 1, 0)
