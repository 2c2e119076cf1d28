"""Environments in processes of their own: the same rollouts, side by side, and what happens when one fails."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ript_ray.policies.base import Decisions
from ript_ray.policies.state_dict import ModulePolicy
from ript_ray.rl.hosting import Hosting
from ript_ray.rl.process_usage import process_usage
from ript_ray.rl.rollout_worker import RolloutWorker
from ript_ray.rl.simulation_processes import SimulationProcessError, SimulationProcesses
from ript_ray.types import Context, RolloutRequest
from tests.commands import environment
from tests.hosted import Walk, fail_to_build

pytestmark = pytest.mark.cli


class Strides(ModulePolicy):
    """Goes right in random strides and records what it saw."""

    def log_probs(self, record):
        raise NotImplementedError

    def act(self, observations, instructions, generators) -> Decisions:
        strides_BC = np.array([generator.uniform(0.1, 0.4, 2) for generator in generators], np.float32)
        zeros = np.zeros((len(generators), 2), np.float32)
        return Decisions(strides_BC[..., None], observations, zeros, np.ones_like(zeros, bool))


def request(*tasks: str) -> RolloutRequest:
    contexts = tuple(Context(task, "go right", (0.5 * row / len(tasks),)) for row, task in enumerate(tasks))
    return RolloutRequest(0, contexts, tuple((row,) for row in range(len(tasks))))


@pytest.fixture
def worker():
    with_processes = RolloutWorker(Strides, Walk, 12, Hosting(num_processes=2))
    yield with_processes
    with_processes.close()


def pids_of(group) -> list[int]:
    return [int(rollout.record["process"][0, 0]) for rollout in group.rollouts]


def test_rollouts_are_those_of_one_process_and_spread_evenly_and_records_reach_the_parent(worker, caplog) -> None:
    asked = request("walk", "walk", "walk", "warns")
    expected = RolloutWorker(Strides, Walk, 12).roll(asked)[1]
    found = worker.roll(asked)[1]
    for ours, theirs in zip(found.rollouts, expected.rollouts, strict=True):
        assert (ours.success, ours.num_steps) == (theirs.success, theirs.num_steps)
        np.testing.assert_array_equal(ours.record["position"], theirs.record["position"])
    assert {rollout.success for rollout in found.rollouts} == {True}
    pids = pids_of(found)
    assert pids[0] == pids[2] != pids[1]
    assert os.getpid() not in pids
    assert pids_of(worker.roll(asked)[1]) == pids  # reused
    own, usage = process_usage(), worker.usage
    assert usage.pid == own.pid
    assert usage.rss_bytes > own.rss_bytes + 2 * 5e6
    assert usage.cpu_s > own.cpu_s + 2 * 0.01, "of both processes: they have imported NumPy"
    worker.close()
    assert worker.usage.cpu_s >= usage.cpu_s, "of processes that have ended, too"
    assert [record.message for record in caplog.records if record.levelname == "WARNING"].count("contact is soft") >= 2


def test_environments_of_a_group_step_side_by_side(worker, tmp_path: Path) -> None:
    meeting = f"meets in {tmp_path}"
    pids = pids_of(worker.roll(request(meeting, meeting))[1])
    assert {path.name for path in tmp_path.iterdir()} == {str(pid) for pid in pids}


def test_a_process_that_dies_is_named_and_the_next_request_gets_new_ones(worker) -> None:
    before = pids_of(worker.roll(request("walk", "walk"))[1])
    with pytest.raises(SimulationProcessError, match="ended with signal SIGKILL"):
        worker.roll(request("walk", "dies", "walk"))
    after = pids_of(worker.roll(request("walk", "walk"))[1])
    assert not set(before) & set(after)
    assert not any(is_alive(pid) for pid in before)


def test_what_an_environment_raises_is_raised_with_where_it_was_raised(worker) -> None:
    with pytest.raises(ValueError, match="the gripper is stuck") as caught:
        worker.roll(request("walk", "raises"))
    assert "in happen" in "".join(caught.value.__notes__)
    broken = RolloutWorker(Strides, fail_to_build, 12, Hosting(num_processes=1))
    with pytest.raises(FileNotFoundError, match="no such scene"):
        broken.roll(request("walk"))


def test_an_environment_that_cannot_be_closed_is_in_the_log(caplog) -> None:
    processes = SimulationProcesses(Walk, 1)
    with contextlib.closing(processes):
        processes.make("clings").close()
        other = processes.make("walk")
        other.begin((0.0,))
        assert other.wait().observation is not None
    assert "close of an environment failed: RuntimeError: the window stays open" in caplog.messages


PARENT = """
from tests.hosted import Walk
from tests.ript_ray.rl.test_simulation_processes import Strides, pids_of, request
from ript_ray.rl.hosting import Hosting
from ript_ray.rl.rollout_worker import RolloutWorker

worker = RolloutWorker(Strides, Walk, 12, Hosting(num_processes=2))
print(*pids_of(worker.roll(request("walk", "walk"))[1]), flush=True)
worker.roll(request("walk", "hangs"))
"""


def test_they_end_with_their_parent_also_in_a_simulators_endless_loop() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env=environment(), text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert parent.stdout.readline() == "hangs\n"  # the other waits for work
    assert all(is_alive(pid) for pid in pids)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 300
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(pid) for pid in pids)


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
