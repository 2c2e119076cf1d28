"""Idle actors roll out groups ahead of need: the batches, and the weights, stay those of the strict order."""

import numpy as np
import pytest
import ray

from ript_ray.config.rl import Sampling
from ript_ray.rl.rollout import RolloutCancelledError
from ript_ray.rl.rollout_worker import RolloutWorker
from ript_ray.runtime.run_ahead import RunAhead
from ript_ray.runtime.schedule import key_of
from ript_ray.runtime.serial import SerialRuntime
from ript_ray.types import Context, GroupSummary, RolloutRequest, Version
from tests.conftest import line_parts
from tests.fakes import LineEnvironment
from tests.faulty import POLICY, runtime_with
from tests.ript_ray.runtime.test_runtimes import checksums, train_on

CONTEXT = Context("left", "go left", (0.0, -1.0))


def request_of(index: int, num_parts: int = 1) -> RolloutRequest:
    seeds = tuple((index, part) for part in range(num_parts))
    return RolloutRequest(index, (CONTEXT,) * num_parts, seeds, num_parts=num_parts)


def in_two_parts(index: int) -> RolloutRequest:
    return request_of(index, 2)


def finished(index: int) -> tuple[GroupSummary, tuple[ray.ObjectRef, ...]]:
    return GroupSummary(index, Version(0), (1.0,), (1,), 0), (ray.ObjectRef.nil(),)


def next_keys(ahead: RunAhead) -> list[tuple[int, int]]:
    return [key_of(request) for request in iter(ahead.next_request, None)]


def launch(ahead: RunAhead, request: RolloutRequest) -> list[tuple[int, int]]:
    return [key_of(part) for part in ahead.launch(request)]


def test_requests_run_ahead_are_those_not_launched_yet_and_at_most_the_limit() -> None:
    ahead = RunAhead(3)
    assert next_keys(ahead) == [], "nothing has been offered"
    ahead.start(request_of, 5)
    assert launch(ahead, request_of(5)) == [(5, 0)], "it runs as usual"
    assert next_keys(ahead) == [(6, 0), (7, 0), (8, 0)]
    ahead.finish(finished(7))
    assert next_keys(ahead) == [], "a held result counts as well"
    assert launch(ahead, request_of(6)) == [], "it is running already"
    assert next_keys(ahead) == [(9, 0)]


def test_a_result_that_comes_before_its_launch_is_delivered_at_the_launch() -> None:
    ahead = RunAhead(3)
    ahead.start(request_of, 0)
    next_keys(ahead)
    ahead.finish(finished(1))
    assert ahead.next_launched() is None
    assert launch(ahead, request_of(0)) == launch(ahead, request_of(1)) == []
    launched = ahead.next_launched()
    assert launched is not None
    assert launched[0].index == 1
    ahead.finish(finished(0))
    assert ahead.num_held == 1


def test_stopping_drops_held_results_and_names_the_running_ones() -> None:
    ahead = RunAhead(3)
    ahead.start(request_of, 0)
    next_keys(ahead)
    ahead.finish(finished(1))
    assert ahead.stop() == [(0, 0), (2, 0)]
    assert (ahead.num_dropped, ahead.num_held, ahead.next_request()) == (1, 0, None)
    ahead.start(request_of, 0)
    assert next_keys(ahead) == [(0, 0), (1, 0), (2, 0)], "they run again, with new weights"


def test_a_request_that_fails_ahead_of_need_is_postponed_until_it_is_launched() -> None:
    ahead = RunAhead(2)
    ahead.start(request_of, 0)
    next_keys(ahead)
    assert ahead.postpone(request_of(0))
    assert next_keys(ahead) == [], "it is not tried again ahead of need"
    assert launch(ahead, request_of(0)) == [(0, 0)], "it runs as usual"
    assert not ahead.postpone(request_of(0)), "it is retried as usual"


def test_the_parts_of_a_group_run_ahead_and_those_that_no_actor_has_begun_are_launched_as_usual() -> None:
    ahead = RunAhead(2)
    ahead.start(in_two_parts, 0)
    assert [key_of(request) for request in (ahead.next_request(),) if request] == [(0, 0)]
    assert launch(ahead, in_two_parts(0)) == [(0, 1)]
    assert next_keys(ahead) == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_a_cancelled_request_stops_before_the_next_policy_call_and_its_environments_are_reused() -> None:
    built: list[LineEnvironment] = []

    def make(task: str) -> LineEnvironment:
        built.append(LineEnvironment())
        return built[-1]

    worker = RolloutWorker(POLICY, make, 12)
    answers = iter([False, False, True])
    with pytest.raises(RolloutCancelledError):
        worker.roll(request_of(0), is_cancelled=lambda: next(answers))
    assert built[0].num_observations == 3, "of two decisions, and of what the second led to"
    again, fresh = worker.roll(request_of(1))[1], RolloutWorker(POLICY, make, 12).roll(request_of(1))[1]
    assert len(built) == 2, "one for each worker"
    np.testing.assert_array_equal(again.rollouts[0].log_probs_TU, fresh.rollouts[0].log_probs_TU)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("lag", "rollouts_per_request", "num_actors"), [(0, None, 16), (0, 2, 8), (1, 2, 8)])
def test_actors_that_run_ahead_give_the_weights_of_one_process(
    lag: int, rollouts_per_request: int | None, num_actors: int, caplog: pytest.LogCaptureFixture
) -> None:
    sampling = Sampling(
        group_size=4,
        batch_rollouts=16,
        max_uniform_groups=200,
        max_policy_lag=lag,
        rollouts_per_request=rollouts_per_request,
    )
    expected = train_on(SerialRuntime(line_parts(POLICY)), sampling=sampling)
    runtime = runtime_with(lambda task: LineEnvironment(), num_actors, cpus_per_actor=0.1)
    try:
        log = train_on(runtime, sampling=sampling)
    finally:
        runtime.close()
    assert all(record.ledger.balance == 0 for record in log.records)
    last = log.records[-1].ledger
    assert (last.trained, last.lost) == (expected.records[-1].ledger.trained, 0)
    assert last.speculated > 0
    assert any("the other actors only run ahead" in message for message in caplog.messages) == (num_actors == 16)
    if lag == 0:
        assert checksums(log) == checksums(expected)
        assert log.num_groups == expected.num_groups, "what is run ahead and not needed is not logged"
