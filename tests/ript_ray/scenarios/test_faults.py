"""Actors that die, hang or raise: the run continues, and its weights equal those of an undisturbed run."""

import contextlib
import ctypes
import functools
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from ript_ray.config.rl import Sampling
from ript_ray.errors import WorkerError
from ript_ray.rl.train import train
from ript_ray.runtime.ray_runtime import RayRuntime
from ript_ray.runtime.serial import SerialRuntime
from ript_ray.types import RolloutRequest
from tests.conftest import line_parts, line_stream
from tests.fakes import LineEnvironment, TinyChunkPolicy
from tests.faulty import POLICY, is_first, runtime_with
from tests.hosted import make_line
from tests.ript_ray.runtime.test_runtimes import SAMPLING, Log, checksums, next_summary, on_ray, train_on

pytestmark = [pytest.mark.ray, pytest.mark.alone, pytest.mark.usefixtures("ray_cluster")]


HANG_S = 3600
"""Duration of a fault that hangs: longer than any test may take, so a test that ends has not waited for it."""
GROUP_TIMEOUT_S = 10.0
"""A group takes milliseconds, the first of a process on a busy machine a second or more."""
HANGS = ("sleep", "locked interpreter", "SIGSTOP")
"""Faults that only a timeout ends."""


def timeout_for(fault: str) -> float:
    """Only a hung group may meet its timeout, in seconds: an innocent one that is slow would be counted, too."""
    return GROUP_TIMEOUT_S if fault in HANGS else HANG_S


@pytest.fixture(scope="module")
def undisturbed() -> list[str]:
    return checksums(train_on(SerialRuntime(line_parts(POLICY))))


def hang_with_the_interpreter_locked() -> None:
    ctypes.PyDLL(None).sleep(HANG_S)


FAULTS: dict[str, Callable[[], object]] = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "os._exit": lambda: os._exit(3),
    "sys.exit": lambda: sys.exit(3),
    "exception": lambda: 1 / 0,
    "sleep": lambda: time.sleep(HANG_S),
    "locked interpreter": hang_with_the_interpreter_locked,
    "SIGSTOP": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


class FaultyEnvironment(LineEnvironment):
    """Triggers a fault once, in the middle of a group, in exactly one process."""

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


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_middle_of_a_group_changes_no_weight(fault: str, tmp_path: Path, undisturbed: list[str]) -> None:
    mark = tmp_path / "done"
    runtime = runtime_with(
        lambda task: FaultyEnvironment(fault, mark),
        group_timeout_s=timeout_for(fault),
        run_ahead=0,  # the loss of a group that turns out not to be needed is not counted
    )
    try:
        log = train_on(runtime)
        assert mark.exists(), "the example must hold a fault"
        assert checksums(log) == undisturbed
        assert log.records[-1].ledger.lost == 1
        assert runtime.dispatch_counts.num_replaced == (0 if fault == "exception" else 1)
    finally:
        runtime.close()


@pytest.mark.parametrize(("fault", "groups"), [("SIGKILL", 1), ("sleep", 2), ("SIGKILL of the actor", 2)])
def test_a_fault_in_a_process_that_hosts_environments_changes_no_weight(
    fault: str, groups: int, tmp_path: Path, undisturbed: list[str]
) -> None:
    mark = tmp_path / "done"
    make = functools.partial(make_line, fault, mark)
    timeout_s = 3 * timeout_for(fault)  # processes have to start
    runtime = runtime_with(make, 1, group_timeout_s=timeout_s, env_processes=2, groups_per_actor=groups, run_ahead=0)
    try:
        log = train_on(runtime)
        assert mark.exists(), "the example must hold a fault"
        assert checksums(log) == undisturbed
        ledger = log.records[-1].ledger
        assert (ledger.balance, ledger.trained) == (0, 12)
        assert 1 <= ledger.lost <= groups
        assert runtime.dispatch_counts.num_replaced == (0 if fault == "SIGKILL" else 1)
    finally:
        runtime.close()


def test_a_hung_group_is_finished_by_an_idle_actor_long_before_its_deadline(
    tmp_path: Path, undisturbed: list[str]
) -> None:
    runtime = runtime_with(
        lambda task: FaultyEnvironment("sleep", tmp_path / "mark"),
        straggler_factor=3.0,
        group_timeout_s=HANG_S,
        run_ahead=0,  # what is not needed is not duplicated
    )
    try:
        log = train_on(runtime)
        assert checksums(log) == undisturbed
        ledger = log.records[-1].ledger
        assert ledger.duplicated >= 1, "the hung copy is cancelled; on a busy machine, others may be slow as well"
        assert ledger.lost == 0, "it is no fault"
        assert runtime.dispatch_counts.num_replaced == 0
    finally:
        runtime.close()


class PolicyThatDiesOnce(TinyChunkPolicy):
    """Kills an actor in the middle of the broadcast after its first group, once."""

    def __init__(self, mark: Path):
        super().__init__("laplace")
        self._mark = mark
        self._has_acted = False

    def act(self, *arguments):
        self._has_acted = True
        return super().act(*arguments)

    def trainable(self):
        if self._has_acted:
            with contextlib.suppress(FileExistsError):
                self._mark.touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return super().trainable()


def await_replaced(runtime: RayRuntime) -> int:
    """Return the number of replaced actors once there is one: the others may end the run before a death is noticed."""
    deadline = time.monotonic() + 300
    while not runtime.dispatch_counts.num_replaced and time.monotonic() < deadline:
        runtime._pool.poll()
    return runtime.dispatch_counts.num_replaced


def test_a_death_in_the_middle_of_a_broadcast_changes_no_weight(tmp_path: Path, undisturbed: list[str]) -> None:
    mark = tmp_path / "mark"
    runtime = runtime_with(lambda task: LineEnvironment(), build_policy=lambda: PolicyThatDiesOnce(mark))
    try:
        log = train_on(runtime)
        assert mark.exists()
        assert checksums(log) == undisturbed
        assert await_replaced(runtime) == 1
    finally:
        runtime.close()


def test_a_killed_actor_is_noticed_sooner_than_one_starts_and_replaced_within_a_few_start_times() -> None:
    class Slow(LineEnvironment):
        def step(self, action):
            time.sleep(0.1)
            return super().step(action)

    started = time.monotonic()
    runtime = runtime_with(lambda task: Slow(), num_actors=2)
    try:
        runtime.broadcast()
        pids = worker_pids(runtime)
        start_s = time.monotonic() - started
        for index in range(1000):
            runtime.launch(RolloutRequest(index, (line_stream().at(0),), ((index,),), keep_record=False))
        found = []
        for kill in range(5):  # other load on the machine can only lengthen what is measured
            victim = worker_pids(runtime)[0]
            for _ in range(2):
                runtime.next_event()  # both actors get new groups, so the victim dies in the middle of one
            os.kill(victim, signal.SIGKILL)
            killed = time.monotonic()
            while runtime.dispatch_counts.num_replaced == kill:
                runtime.next_event()
            noticed_s = time.monotonic() - killed
            while runtime._pool.num_ready < 2:
                runtime.next_event()
            found.append((noticed_s, time.monotonic() - killed))
            if found[-1][0] < start_s and found[-1][1] < 4 * start_s:
                break
        else:
            pytest.fail(f"noticed and replaced after {found} s, the first start took {start_s:.1f} s")
        assert set(worker_pids(runtime)) != set(pids)
    finally:
        runtime.close()


def worker_pids(runtime: RayRuntime) -> list[int]:
    return [
        ray.get(actor.handle.__ray_call__.remote(lambda worker: os.getpid()), timeout=300)
        for actor in runtime._pool._actors.values()
    ]


def test_an_actor_killed_externally_between_updates_is_replaced_with_the_current_weights(
    undisturbed: list[str],
) -> None:
    runtime = runtime_with(lambda task: LineEnvironment())
    try:
        first = train_on(runtime, num_updates=1)
        os.kill(worker_pids(runtime)[0], signal.SIGKILL)
        assert checksums(first) == undisturbed[:1]
        indices = range(1000, 1006)
        for index in indices:
            runtime.launch(RolloutRequest(index, (line_stream().at(0),), ((index,),), keep_record=False))
        assert {next_summary(runtime).version for _ in indices} == {1}
        assert runtime.dispatch_counts.num_replaced == 1
    finally:
        runtime.close()


def test_a_constructor_that_always_dies_ends_the_run_within_the_budget() -> None:
    def die() -> TinyChunkPolicy:
        os._exit(1)

    # An actor that dies must not be waited for until its start timeout, which is longer than this test may take.
    with pytest.raises(WorkerError, match=r"rollout actor \d failed .*2 of at most 2 actors have been replaced"):
        on_ray(line_parts(die), 1, max_replacements=2, start_timeout_s=HANG_S)


def test_a_constructor_that_always_raises_ends_the_run_after_a_few_attempts() -> None:
    def broken() -> TinyChunkPolicy:
        raise OSError("no such weights")

    with pytest.raises(WorkerError, match=r"no such weights.*3 of at most 3 consecutive starts have failed"):
        on_ray(line_parts(broken), 1)


class SlowFirstEnvironment(LineEnvironment):
    """The first one built in any process hangs; all others fail every group immediately."""

    def __init__(self, mark: Path):
        super().__init__()
        try:
            mark.touch(exist_ok=False)
            self._hangs = True
        except FileExistsError:
            self._hangs = False

    def step(self, action):
        if self._hangs:
            time.sleep(HANG_S)
        super().step(action)
        self._solved = False
        return False


def test_a_hung_actor_is_replaced_while_others_keep_responding(tmp_path: Path) -> None:
    runtime = runtime_with(
        lambda task: SlowFirstEnvironment(tmp_path / "mark"), num_actors=3, group_timeout_s=GROUP_TIMEOUT_S
    )
    try:
        sampling = Sampling(group_size=4, batch_rollouts=16, max_uniform_groups=30)
        outcome = train(runtime, line_stream(), sampling=sampling, num_updates=1, seed=5)
        assert outcome.exhausted is not None
        assert runtime.dispatch_counts.num_replaced == 1
    finally:
        runtime.close()


def test_a_group_that_fails_on_every_actor_ends_the_run_and_is_named() -> None:
    class Broken(LineEnvironment):
        def step(self, action):
            raise RuntimeError("the simulator is unstable")

    runtime = runtime_with(lambda task: Broken())
    try:
        with pytest.raises(
            WorkerError, match=r"group \d+ \((left|right)\) failed 5 times.*RuntimeError: the simulator"
        ):
            train_on(runtime)
        counts = runtime.dispatch_counts
        assert 3 * counts.num_replaced <= counts.num_lost, "only the third exception in a row costs a process"
    finally:
        runtime.close()


class BrokenProcessEnvironment(LineEnvironment):
    """Raises immediately in the first process that builds one; others wait until it has raised three times."""

    def __init__(self, mark: Path):
        super().__init__()
        self._broken, self._raised = is_first(mark), mark.with_name("raised")

    def step(self, action):
        if self._broken:
            with self._raised.open("a") as file:
                file.write("x")
            raise RuntimeError("the graphics context is lost")
        while not self._raised.exists() or self._raised.stat().st_size < 3:
            time.sleep(0.01)
        return super().step(action)


def test_a_process_that_keeps_raising_is_replaced_and_does_not_end_the_run(
    tmp_path: Path, undisturbed: list[str]
) -> None:
    runtime = runtime_with(lambda task: BrokenProcessEnvironment(tmp_path / "mark"), num_actors=3, run_ahead=0)
    try:
        log = train_on(runtime)
        assert checksums(log) == undisturbed
        assert runtime.dispatch_counts.num_replaced == 1
        assert log.records[-1].ledger.lost == 3
    finally:
        runtime.close()


class DivergesOnce(TinyChunkPolicy):
    """The loss of its first step is NaN."""

    def __init__(self) -> None:
        super().__init__("laplace")
        self._num_calls = 0

    def log_probs(self, record):
        self._num_calls += 1
        return super().log_probs(record) * (math.nan if self._num_calls == 1 else 1.0)


@pytest.mark.parametrize("lag", [0, 1])
def test_after_a_skipped_update_no_actor_has_outdated_weights(lag: int) -> None:
    runtime = runtime_with(lambda task: LineEnvironment(), build_policy=DivergesOnce)
    log = Log()
    try:
        sampling = replace(SAMPLING, max_policy_lag=lag)
        train(runtime, line_stream(), sampling=sampling, num_updates=4, seed=5, callbacks=[log])
    finally:
        runtime.close()
    assert [record.report.error is not None for record in log.records] == [True, False, False, False]
    assert log.records[-1].ledger.stale == 0
    assert log.records[-1].ledger.trained == 16
