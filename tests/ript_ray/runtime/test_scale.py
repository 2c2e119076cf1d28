"""The driver's work grows linearly with the number of actors."""

import time
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import pytest
import ray

from ript_ray.runtime.actor_pool import ActorPool
from ript_ray.runtime.capacity import ActorCapacity, Room
from ript_ray.runtime.host import processor_kind
from ript_ray.runtime.limits import Limits
from ript_ray.runtime.remote_logs import Logged
from ript_ray.runtime.run_ahead import RunAhead
from ript_ray.types import Context, GroupSummary, RolloutRequest, Version, Weights

pytestmark = [pytest.mark.ray, pytest.mark.alone, pytest.mark.usefixtures("ray_cluster")]

NUM_GROUPS = 180
CONTEXT = Context("left", "go left", (0.0, -0.9))
WEIGHTS = Weights(Version(1), "checksum", (), np.zeros(0, np.uint8))


class Method:
    """A method of a remote actor that answers at once."""

    def __init__(self, answer: Callable[..., Any]):
        self._answer = answer

    def options(self, *, num_returns: int) -> Self:
        return self

    def remote(self, *arguments: Any) -> Any:
        return self._answer(*arguments)


class Handle:
    """An actor without a process, for the costs of the driver alone."""

    def __init__(self) -> None:
        self.__ray_call__ = Method(lambda function: ray.put(("node", processor_kind())))
        self.load_logged = Method(lambda weights: ray.put(Logged(WEIGHTS.checksum, ())))
        self.roll_logged = Method(self._roll)

    def _roll(self, request: RolloutRequest) -> tuple[ray.ObjectRef, ray.ObjectRef]:
        summary = GroupSummary(request.index, WEIGHTS.version, (1.0,), (1,), 0, (), None)
        return ray.put(Logged(summary, ())), ray.put(None)


def costs(num_actors: int) -> tuple[float, float]:
    """Return the seconds of a broadcast to all actors, and of `NUM_GROUPS` launched and finished groups."""
    limits = Limits(start_timeout_s=600, group_timeout_s=600, max_replacements=0)
    pool = ActorPool(
        lambda slot: Handle(),
        limits,
        capacity=ActorCapacity(lambda: Room(num_actors), num_actors, timeout_s=600),
        ahead=RunAhead(0),
    )
    while pool.num_starting:
        pool.poll()
    started = time.perf_counter()
    pool.load(ray.put(None), WEIGHTS)
    while len(pool._idle) < num_actors:
        pool.poll()
    broadcast = time.perf_counter()
    for first in (0, NUM_GROUPS):  # the second time, durations are known, so that stragglers are looked for
        for index in range(first, first + NUM_GROUPS):
            pool.submit(RolloutRequest(index, (CONTEXT,), ((index,),)))
        for _ in range(NUM_GROUPS):
            while pool.next_finished() is None:
                pool.poll()
    return broadcast - started, time.perf_counter() - broadcast


def test_four_times_the_actors_cost_about_four_times_per_broadcast_and_no_more_per_group() -> None:
    for _ in range(6):  # other load on the machine can only spoil an attempt
        (small_load, small_groups), (large_load, large_groups) = costs(250), costs(1000)
        ratios = large_load / small_load, large_groups / small_groups
        if ratios[0] < 7 and ratios[1] < 4:
            break
    assert ratios[0] < 7, f"{large_load:.2f} s per broadcast to 1,000 actors, {small_load:.2f} s to 250; linear is 4"
    assert ratios[1] < 4, f"{large_groups:.2f} s per {NUM_GROUPS} groups, {small_groups:.2f} s with 250; linear is 1"
