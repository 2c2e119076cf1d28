"""What is left of actors that die or hang, and of a runtime that is closed: no process and no object."""

import functools
import gc
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import ray

from tests.fakes import LineEnvironment
from tests.faulty import HeavyPolicy, runtime_with
from tests.ript_ray.runtime.test_runtimes import train_on
from tests.ript_ray.scenarios.test_faults import HANG_S, FaultyEnvironment, timeout_for, worker_pids

pytestmark = [pytest.mark.ray, pytest.mark.alone, pytest.mark.usefixtures("ray_cluster")]


class ParentEnvironment(FaultyEnvironment):
    """Has a child process, as simulators in subprocesses do."""

    def __init__(self, fault: str, folder: Path):
        super().__init__(fault, folder / "mark")
        child = subprocess.Popen(["sleep", str(HANG_S)])
        (folder / str(child.pid)).touch()


@pytest.mark.parametrize("fault", ["SIGKILL", "locked interpreter", "SIGSTOP"])
def test_the_child_processes_of_a_killed_or_stuck_actor_are_killed_too(fault: str, tmp_path: Path) -> None:
    runtime = runtime_with(
        lambda task: ParentEnvironment(fault, tmp_path), group_timeout_s=timeout_for(fault), run_ahead=0
    )
    try:
        train_on(runtime)
        assert runtime.dispatch_counts.num_replaced == 1
    finally:
        runtime.close()
    pids = [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]
    assert pids
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and any(map(alive, pids)):
        time.sleep(0.1)
    assert not [pid for pid in pids if alive(pid)]


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_closed_runtime_leaves_no_process_and_no_object() -> None:
    runtime = runtime_with(lambda task: LineEnvironment(), build_policy=functools.partial(HeavyPolicy, "laplace"))
    record_bytes = train_on(runtime, num_updates=2).records[0].stats.record_bytes
    assert record_bytes > 4 * 100_000, "Ray stores groups above 100 kB only"
    pids = worker_pids(runtime)
    runtime.close()
    del runtime
    gc.collect()
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and (any(map(alive, pids)) or stored_bytes()):
        time.sleep(0.1)
    assert not [pid for pid in pids if alive(pid)]
    assert stored_bytes() == 0


def stored_bytes() -> float:
    return ray.cluster_resources()["object_store_memory"] - ray.available_resources()["object_store_memory"]
