"""The limit of replacements is a rate, and the timeout of a request grows with its failures."""

import os
import time
from pathlib import Path

import pytest
import ray

from ript_ray.errors import WorkerError
from ript_ray.runtime.actor_pool import ActorPool
from ript_ray.runtime.capacity import ActorCapacity, Room
from ript_ray.runtime.limits import Limits
from ript_ray.runtime.remote_logs import Logged
from ript_ray.runtime.run_ahead import RunAhead
from ript_ray.types import Context, GroupSummary, RolloutRequest, Version

pytestmark = [pytest.mark.ray, pytest.mark.alone, pytest.mark.usefixtures("ray_cluster")]

CONTEXT = Context("left", "go left", (0.0, -0.9))


class DiesOncePerRequest:
    def __init__(self, folder: Path):
        self._folder = folder

    def roll_logged(self, request: RolloutRequest) -> tuple[Logged[GroupSummary], None]:
        mark = self._folder / str(request.index)
        if not mark.exists():
            mark.touch()
            os._exit(1)
        return Logged(GroupSummary(request.index, Version(0), (1.0,), (1,), 0, (), None), ()), None


def finish_requests(folder: Path, num_requests: int, period_s: float) -> ActorPool:
    """Run requests, each of which kills an actor first, where one replacement is allowed per period."""
    actor_class = ray.remote(num_cpus=0.1)(DiesOncePerRequest)
    limits = Limits(start_timeout_s=300, group_timeout_s=300, max_replacements=1, replacement_period_s=period_s)
    pool = ActorPool(
        lambda slot: actor_class.remote(folder),
        limits,
        capacity=ActorCapacity(lambda: Room(1), 1, timeout_s=300),
        ahead=RunAhead(0),
    )
    try:
        for index in range(num_requests):
            pool.submit(RolloutRequest(index, (CONTEXT,), ((index,),)))
            while pool.next_finished() is None:
                pool.poll()
    finally:
        pool.kill()
    return pool


def test_actors_that_die_rarely_never_use_up_the_replacements(tmp_path: Path) -> None:
    pool = finish_requests(tmp_path, 3, period_s=0.1)  # a start takes longer
    assert pool.dispatch_counts.num_replaced == 3


def test_actors_that_die_more_often_than_the_limit_end_the_run(tmp_path: Path) -> None:
    message = r"1 of at most 1 actors have been replaced within 3600 s \(cluster\.max-replacements\)"
    with pytest.raises(WorkerError, match=message):
        # Not every death counts: on a busy machine Ray may not know at once that it was one.
        finish_requests(tmp_path, 20, period_s=3600.0)


class DiesWhileItStarts:
    def __init__(self) -> None:
        os._exit(1)


def test_actors_killed_while_they_start_are_counted_apart_from_failed_starts_and_named_as_such() -> None:
    actor_class = ray.remote(num_cpus=0.1)(DiesWhileItStarts)
    limits = Limits(start_timeout_s=300, group_timeout_s=300, max_replacements=9, max_killed_starts=4)
    capacity = ActorCapacity(lambda: Room(1), 1, timeout_s=300)
    pool = ActorPool(lambda slot: actor_class.remote(), limits, capacity=capacity, ahead=RunAhead(0))
    message = "0 of at most 3 consecutive starts have failed, 4 of at most 4 actors were killed while they started"
    with pytest.raises(WorkerError, match=message):  # noqa: PT012 (which of the polls it is varies)
        while not pool.num_ready:
            pool.poll()
    pool.kill()


class TakesThreeSeconds:
    def roll_logged(self, request: RolloutRequest) -> tuple[Logged[GroupSummary], None]:
        time.sleep(3)
        return Logged(GroupSummary(request.index, Version(0), (1.0,), (1,), 0, (), None), ()), None


def test_a_request_that_always_takes_longer_than_its_timeout_is_finished_by_a_later_attempt() -> None:
    actor_class = ray.remote(num_cpus=0.1)(TakesThreeSeconds)
    limits = Limits(start_timeout_s=300, group_timeout_s=1.0, max_replacements=9)
    capacity = ActorCapacity(lambda: Room(1), 1, timeout_s=300)
    pool = ActorPool(lambda slot: actor_class.remote(), limits, capacity=capacity, ahead=RunAhead(0))
    try:
        pool.submit(RolloutRequest(0, (CONTEXT,), ((0,),)))
        while pool.next_finished() is None:
            pool.poll()
        assert pool.dispatch_counts.num_replaced >= 2, "1 and 2 s are too short; on a busy machine, 4 s may be"
    finally:
        pool.kill()
