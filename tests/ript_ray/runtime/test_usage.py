"""Memory and processor time of all processes, reported with the answers that travel anyway."""

import gc
import time
import weakref

import numpy as np
import pytest

from ript_ray.rl.process_usage import BusyClock, process_usage
from ript_ray.rl.protocols import RuntimeUsage
from ript_ray.rl.rollout import EnvironmentPool
from ript_ray.runs.metrics import IdleTime, memory_metrics
from ript_ray.runtime.serial import SerialRuntime
from ript_ray.runtime.usage import UsageLog
from ript_ray.types import ProcessUsage
from tests.conftest import line_parts
from tests.fakes import LineEnvironment
from tests.ript_ray.runtime.test_runtimes import POLICIES, on_ray, train_on


def test_a_process_knows_its_memory_and_its_processor_time() -> None:
    before = process_usage()
    ballast = np.ones(8_000_000)  # 64 MB
    after = process_usage()
    assert after.pid == before.pid
    assert after.rss_bytes - before.rss_bytes > 0.9 * ballast.nbytes
    assert after.cpu_s >= before.cpu_s > 0


def test_the_processor_time_of_a_replaced_process_still_counts() -> None:
    log = UsageLog()
    for usage in (ProcessUsage(7, 10, 3.0), ProcessUsage(7, 10, 5.0), ProcessUsage(8, 20, 1.0)):
        log.note(0, usage)
    log.note(1, ProcessUsage(9, 30, 2.0))
    assert log.cpu_s == 5 + 1 + 2
    assert {number: usage.rss_bytes for number, usage in log.latest.items()} == {0: 20, 1: 30}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_driver_learner_and_actors_report_after_every_update() -> None:
    runtime = on_ray(line_parts(POLICIES["laplace"]), 2)
    try:
        runtime.broadcast()
        while len(runtime.usage.processes["actor"]) < 2:  # one of them might do all the work before the other is ready
            runtime._pool.poll()
        usage = train_on(runtime, num_updates=1).records[-1].usage
    finally:
        runtime.close()
    assert {kind: len(processes) for kind, processes in usage.processes.items()} == {
        "driver": 1,
        "learner": 1,
        "actor": 2,
    }
    processes = [process for each in usage.processes.values() for process in each.values()]
    assert len({process.pid for process in processes}) == 4
    assert usage.cpu_s == pytest.approx(sum(process.cpu_s for process in processes), abs=0.1)
    serial = train_on(SerialRuntime(line_parts(POLICIES["laplace"])), num_updates=1).records[-1].usage
    assert list(serial.processes) == ["driver"]


def test_the_metrics_list_every_actor_if_they_are_few_and_the_highest_and_the_mean_if_they_are_many() -> None:
    def metrics_of(num_actors: int) -> dict[str, float]:
        actors = {number: ProcessUsage(number, 10 * number, 0.0) for number in range(num_actors)}
        return memory_metrics(RuntimeUsage({"driver": {0: ProcessUsage(1, 5, 0.0)}, "actor": actors, "learner": {}}))

    few = {f"memory/actor_{number}_bytes": 10.0 * number for number in range(3)}
    assert metrics_of(3) == {
        "memory/driver_bytes": 5,
        "memory/actor_bytes": 20,
        "memory/actor_mean_bytes": 10,
        **few,
    }
    assert metrics_of(41) == {"memory/driver_bytes": 5, "memory/actor_bytes": 400, "memory/actor_mean_bytes": 200}


def test_actors_are_idle_for_the_share_of_their_time_without_a_group() -> None:
    now = 100.0
    idle_time = IdleTime(lambda: now)

    def take(**busy_s: float) -> dict[str, float]:
        actors = {int(name[1:]): ProcessUsage(int(name[1:]), 0, 0.0, seconds) for name, seconds in busy_s.items()}
        return idle_time.take(RuntimeUsage({"actor": actors}))

    assert take(a0=7.0, a1=3.0) == {}
    now += 10
    assert take(a0=12.0, a1=9.0) == {"time/actors_idle": pytest.approx(1 - 11 / 20)}
    now += 10
    assert take(a1=19.0, a2=1.0) == {"time/actors_idle": 0.0}  # of the only one that was there before
    now += 10
    assert take() == {}


def test_the_clock_counts_the_time_in_which_several_threads_work_once() -> None:
    clock = BusyClock()
    with clock.working():
        with clock.working():
            time.sleep(0.05)
        inside = clock.busy_s
        time.sleep(0.05)
    total = clock.busy_s
    time.sleep(0.05)
    assert clock.busy_s == total >= inside + 0.05 >= 0.1


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_actors_report_how_long_they_rolled_out() -> None:
    started = time.monotonic()
    runtime = on_ray(line_parts(POLICIES["laplace"]), 1)
    try:
        usage = train_on(runtime, num_updates=1).records[-1].usage
    finally:
        runtime.close()
    (actor,) = usage.processes["actor"].values()
    assert 0 < actor.busy_s < time.monotonic() - started


class CyclicEnvironment(LineEnvironment):
    """Refers to itself, as simulators do."""

    def __init__(self) -> None:
        super().__init__()
        self.itself = self


def test_an_environment_closed_for_the_bound_is_freed_at_once_though_it_is_a_reference_cycle() -> None:
    built: list[weakref.ref[CyclicEnvironment]] = []

    def make(task: str) -> CyclicEnvironment:
        environment = CyclicEnvironment()
        built.append(weakref.ref(environment))
        return environment

    pool = EnvironmentPool(make, max_environments=2)
    gc.disable()
    try:
        for task in "abc":
            pool.take([task] * 2)
        assert [reference() is None for reference in built] == [True] * 4 + [False] * 2
    finally:
        gc.enable()
