"""How many actors there should be on nodes that come and go."""

import logging
import time

import pytest

from ript_ray.errors import WorkerError
from ript_ray.runtime.capacity import CHECK_S, ActorCapacity, Room


class Clock:
    """Stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def look_again(capacity: ActorCapacity, clock: Clock) -> None:
    clock.now += CHECK_S
    assert capacity.look() is not None


@pytest.mark.parametrize(("asked", "wanted"), [(None, (2, 4, 1)), (3, (3, 3, 3))])
def test_the_number_of_actors_follows_the_nodes_unless_one_is_asked_for(
    asked: int | None, wanted: tuple[int, ...], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ript_ray")
    rooms = iter([Room(2), Room(4), Room(1)])
    capacity = ActorCapacity(lambda: next(rooms), asked, timeout_s=100)
    for number in wanted:
        look_again(capacity, clock)
        assert capacity.look() is None, "the nodes are not looked at more often"
        assert capacity.num_wanted == number
    texts = ["rollout actors: 4 now fit on the nodes, before 2", "rollout actors: 1 now fit on the nodes, before 4"]
    assert caplog.messages == ([] if asked else texts)


@pytest.mark.parametrize(("asked", "problem"), [(None, "there is no rollout actor"), (3, "asked for 3, got 0")])
def test_a_run_without_an_actor_waits_for_a_node_and_fails_in_time_by_name(
    asked: int | None, problem: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    capacity = ActorCapacity(lambda: Room(0), asked, timeout_s=0.1)
    look_again(capacity, clock)
    assert capacity.free(num_actors=0, num_due=capacity.num_wanted) == 0
    assert "waiting for a node to join, for at most 0.1 s (cluster.node-timeout-s)" in caplog.messages[-1]
    assert capacity.free(num_actors=1, num_due=0) == -1, "an actor that is still there ends the wait"
    capacity.free(num_actors=0, num_due=capacity.num_wanted)
    clock.now += 0.2
    with pytest.raises(
        WorkerError, match=rf"{problem}.*; none became available within 0\.1 s \(cluster\.node-timeout-s"
    ):
        capacity.free(num_actors=0, num_due=capacity.num_wanted)
