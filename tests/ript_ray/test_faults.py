"""Actors that die, hang or raise: the run goes on, and its weights are those of an undisturbed run."""

import ctypes
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray

from ript_ray.config import Sampling
from ript_ray.errors import WorkerError
from ript_ray.runtime.on_ray import RayRuntime
from ript_ray.runtime.serial import SerialRuntime
from ript_ray.train import train
from ript_ray.types import RolloutRequest
from tests.conftest import line_parts, line_stream
from tests.fakes import LineEnvironment, TinyChunkPolicy
from tests.ript_ray.test_runtime import checksums, on_ray, train_on

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

POLICY = functools.partial(TinyChunkPolicy, "laplace")


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def undisturbed() -> list[str]:
    return checksums(train_on(SerialRuntime(line_parts(POLICY))))


def hang_with_the_interpreter_locked() -> None:
    ctypes.PyDLL(None).sleep(120)


FAULTS: dict[str, Callable[[], object]] = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "os._exit": lambda: os._exit(3),
    "sys.exit": lambda: sys.exit(3),
    "exception": lambda: 1 / 0,
    "sleep": lambda: time.sleep(120),
    "locked interpreter": hang_with_the_interpreter_locked,
    "SIGSTOP": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}
STUCK = ("sleep", "locked interpreter", "SIGSTOP")


class FaultyEnvironment(LineEnvironment):
    """Does something terrible once, in the middle of a group, in one process of all."""

    def __init__(self, fault: str, mark: Path):
        super().__init__()
        self._fault, self._mark = fault, mark

    def step(self, action):
        if self.num_steps == 20:
            try:
                self._mark.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                FAULTS[self._fault]()
        return super().step(action)


def runtime_with(make_environment, num_actors: int = 2, **limits: float) -> RayRuntime:
    parts = replace(line_parts(POLICY), make_environment=make_environment)
    return on_ray(parts, num_actors, **limits)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_middle_of_a_group_changes_no_weight(fault: str, tmp_path: Path, undisturbed: list[str]) -> None:
    mark = tmp_path / "done"
    runtime = runtime_with(lambda task: FaultyEnvironment(fault, mark), group_timeout_s=4.0)
    try:
        started = time.monotonic()
        log = train_on(runtime)
        assert mark.exists(), "the example must hold a fault"
        assert checksums(log) == undisturbed
        faults = runtime.faults
        assert faults.num_lost == 1
        assert faults.num_replaced == (0 if fault == "exception" else 1)
        assert time.monotonic() - started < 45
    finally:
        runtime.close()


def test_an_actor_killed_from_outside_between_updates_is_replaced_with_the_present_weights(
    undisturbed: list[str],
) -> None:
    runtime = runtime_with(lambda task: LineEnvironment())
    try:
        first = train_on(runtime, num_updates=1)
        victim = next(iter(runtime._pool._actors.values())).handle
        os.kill(ray.get(victim.__ray_call__.remote(lambda worker: os.getpid())), signal.SIGKILL)
        assert checksums(first) == undisturbed[:1]
        indices = range(1000, 1006)
        for index in indices:
            runtime.launch(RolloutRequest(index, (line_stream().at(0),), ((index,),), keep_record=False))
        assert {runtime.next_summary().version for _ in indices} == {1}
        assert runtime.faults.num_replaced == 1
    finally:
        runtime.close()


def test_a_constructor_that_always_dies_ends_the_run_within_the_budget() -> None:
    def die() -> TinyChunkPolicy:
        os._exit(1)

    started = time.monotonic()
    with pytest.raises(WorkerError, match=r"rollout actor \d was lost .*2 may be replaced"):
        on_ray(line_parts(die), 1, max_replacements=2)
    assert time.monotonic() - started < 60


def test_a_constructor_that_never_works_is_not_tried_for_hours() -> None:
    def broken() -> TinyChunkPolicy:
        raise OSError("no such weights")

    with pytest.raises(WorkerError, match=r"no such weights.*3 starts may fail in a row and 3 have"):
        on_ray(line_parts(broken), 1)


class SlowFirstEnvironment(LineEnvironment):
    """The first one built in any process hangs; all others fail every group at once."""

    def __init__(self, mark: Path):
        super().__init__()
        try:
            mark.touch(exist_ok=False)
            self._hangs = True
        except FileExistsError:
            self._hangs = False

    def step(self, action):
        if self._hangs:
            time.sleep(120)
        super().step(action)
        self._solved = False
        return False


def test_a_hung_actor_is_replaced_though_others_keep_answering(tmp_path: Path) -> None:
    runtime = runtime_with(lambda task: SlowFirstEnvironment(tmp_path / "mark"), num_actors=3, group_timeout_s=4.0)
    try:
        started = time.monotonic()
        sampling = Sampling(group_size=4, batch_rollouts=16, max_uniform_groups=30)
        outcome = train(runtime, line_stream(), sampling=sampling, num_updates=1, seed=5)
        assert outcome.exhausted is not None
        assert runtime.faults.num_replaced == 1
        assert time.monotonic() - started < 40
    finally:
        runtime.close()


def test_a_group_that_fails_wherever_it_runs_ends_the_run_by_name() -> None:
    class Broken(LineEnvironment):
        def step(self, action):
            raise RuntimeError("the simulator is unstable")

    runtime = runtime_with(lambda task: Broken())
    try:
        with pytest.raises(
            WorkerError, match=r"group \d+ \((left|right)\) failed 5 times.*RuntimeError: the simulator"
        ):
            train_on(runtime)
        assert runtime.faults.num_replaced == 0, "an exception must not cost a process"
    finally:
        runtime.close()


class ParentEnvironment(LineEnvironment):
    """Has a child process, as simulators in subprocesses do, and kills its own actor once."""

    def __init__(self, folder: Path):
        super().__init__()
        self._folder = folder
        child = subprocess.Popen(["sleep", "300"])
        (folder / str(child.pid)).touch()

    def step(self, action):
        if self.num_steps == 10 and not (self._folder / "killed").exists():
            (self._folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


def test_the_children_of_a_killed_actor_are_gone_too(tmp_path: Path) -> None:
    runtime = runtime_with(lambda task: ParentEnvironment(tmp_path))
    try:
        train_on(runtime, num_updates=1)
    finally:
        runtime.close()
    pids = [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]
    assert pids
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(map(alive, pids)):
        time.sleep(0.1)
    assert not [pid for pid in pids if alive(pid)]


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
