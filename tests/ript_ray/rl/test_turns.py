"""A rollout worker that works on two groups in turns: the bits of each are those that it has alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ript_ray.rl.hosting import Hosting
from ript_ray.rl.rollout import RolloutCancelledError
from ript_ray.rl.rollout_worker import RolloutWorker
from ript_ray.rl.weights import snapshot
from ript_ray.types import Context, Group, RolloutRequest, Version
from tests.fakes import LineEnvironment, TinyChunkPolicy

DEADLINE_S = 300
"""Longer than any of these tests takes; a test that waits as long has failed."""


class AloneInItsPolicy(TinyChunkPolicy):
    """Refuses to act for two groups at the same time."""

    def __init__(self) -> None:
        super().__init__("laplace")
        self._is_acting = threading.Lock()

    def act(self, *arguments):
        assert self._is_acting.acquire(blocking=False)
        try:
            return super().act(*arguments)
        finally:
            self._is_acting.release()


class Meeting(LineEnvironment):
    """Every first step of an episode waits until one of another environment begins."""

    def __init__(self, barrier: threading.Barrier):
        super().__init__()
        self._barrier = barrier

    def reset(self, initial_state):
        super().reset(initial_state)
        self._is_first = True

    def step(self, action):
        if self._is_first:
            self._is_first = False
            self._barrier.wait()
        return super().step(action)


class Jams(LineEnvironment):
    """Task "jams" raises in its first step; knows whether it was closed."""

    def __init__(self, task: str):
        super().__init__()
        self.task = task
        self.is_open = True

    def step(self, action):
        if self.task == "jams":
            raise RuntimeError("the gripper is stuck")
        return super().step(action)

    def close(self) -> None:
        super().close()
        self.is_open = False


def request_of(index: int, task: str = "right", num_rollouts: int = 1) -> RolloutRequest:
    context = Context(task, "go", (0.0, 0.9))
    return RolloutRequest(index, (context,) * num_rollouts, tuple((index, row) for row in range(num_rollouts)))


def worker_with(make_environment, num_groups: int = 2) -> RolloutWorker:
    return RolloutWorker(AloneInItsPolicy, make_environment, 12, Hosting(num_groups=num_groups))


def assert_same(found: Group, expected: Group) -> None:
    for ours, theirs in zip(found.rollouts, expected.rollouts, strict=True):
        assert (ours.success, ours.num_steps) == (theirs.success, theirs.num_steps)
        np.testing.assert_array_equal(ours.log_probs_TU, theirs.log_probs_TU)


def test_the_policy_acts_for_one_group_while_another_steps_and_each_has_the_bits_that_it_has_alone() -> None:
    barrier = threading.Barrier(2, timeout=DEADLINE_S)
    worker = worker_with(lambda task: Meeting(barrier))
    with ThreadPoolExecutor(2) as threads:
        found = [group for _, group in threads.map(worker.roll, [request_of(index) for index in range(20)])]
    alone = worker_with(lambda task: LineEnvironment(), num_groups=1)
    for index, group in enumerate(found):
        assert group.index == index
        assert_same(group, alone.roll(request_of(index))[1])


def test_groups_of_many_rollouts_in_turns_have_the_bits_that_they_have_alone() -> None:
    requests = [request_of(index, num_rollouts=6) for index in range(30)]
    worker, alone = worker_with(lambda task: LineEnvironment()), worker_with(lambda task: LineEnvironment(), 1)
    with ThreadPoolExecutor(2) as threads:
        for request, (summary, group) in zip(requests, threads.map(worker.roll, requests), strict=True):
            expected = alone.roll(request)
            assert summary == expected[0]
            assert_same(group, expected[1])


def test_a_group_that_fails_or_is_cancelled_leaves_the_other_one_alone() -> None:
    built: list[Jams] = []

    def make(task: str) -> Jams:
        built.append(Jams(task))
        return built[-1]

    worker, is_inside, may_go_on = worker_with(make), threading.Event(), threading.Event()

    def wait(row: int, action: object) -> None:
        is_inside.set()
        assert may_go_on.wait(DEADLINE_S)

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(worker.roll, request_of(3), on_action=wait)
        assert is_inside.wait(DEADLINE_S)
        with pytest.raises(RuntimeError, match="the gripper is stuck"):
            worker.roll(request_of(4, "jams"))
        with pytest.raises(RolloutCancelledError):
            worker.roll(request_of(5, "left"), is_cancelled=lambda: True)
        with pytest.raises(AssertionError, match="one version rolls out all of a group"):
            worker.load(snapshot(TinyChunkPolicy("laplace"), Version(1)))
        may_go_on.set()
        found = running.result(DEADLINE_S)[1]
    assert {environment.task: environment.is_open for environment in built} == {
        "right": True,
        "jams": False,
        "left": True,
    }
    assert_same(found, worker_with(make, num_groups=1).roll(request_of(3))[1])
    assert worker.load(snapshot(TinyChunkPolicy("laplace"), Version(1)))


def test_the_bounds_on_open_environments_are_shared_out_among_the_groups() -> None:
    built: list[Jams] = []

    def make(task: str) -> Jams:
        built.append(Jams(task))
        return built[-1]

    worker = RolloutWorker(AloneInItsPolicy, make, 12, Hosting(max_environments=4, max_tasks=2, num_groups=2))
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(worker.roll, [request_of(index, f"task {index}", 2) for index in range(4)]))
    assert sum(environment.is_open for environment in built) <= 4
    worker.close()
    assert not any(environment.is_open for environment in built)
