"""Tasks in Ray worker processes: lost, failing and hanging ones are retried; files equal those recorded without Ray."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import h5py
import pytest

from ript_envs.metaworld.benchmark import MetaWorld
from ript_ray.data.recording import Plan, files_of, record_files
from ript_ray.errors import ConfigError, WorkerError
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.task_pool import open_task_pool

pytestmark = pytest.mark.ray

TWO = Cluster(num_actors=2, group_timeout_s=600)


def first_time(folder: Path, what: str) -> bool:
    """Whether this is the first call, in any process."""
    try:
        (folder / what).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def square(item: tuple[Path, int]) -> int:
    folder, number = item
    if number == 3 and first_time(folder, "killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 4 and first_time(folder, "hung"):
        time.sleep(3600)
    if number == 5 and first_time(folder, "raised"):
        raise RuntimeError("once")
    if number == 100:
        raise ConfigError("one hundred is too much")
    if number == 101:
        raise RuntimeError("always")
    return number**2


def start_s(folder: Path) -> float:
    """Return the duration of a task in a new process, in seconds: on a busy machine, imports take long."""
    with open_task_pool(square, TWO) as tasks:
        started = time.monotonic()
        tasks.submit((folder, 0))
        tasks.next_done()
        return time.monotonic() - started


def test_tasks_whose_process_dies_hangs_or_raises_are_retried_and_each_completes_once(tmp_path: Path) -> None:
    done: list[tuple[tuple[Path, int], int]] = []
    with open_task_pool(square, replace(TWO, group_timeout_s=max(20, 5 * start_s(tmp_path)))) as tasks:
        assert tasks.num_free == 2
        waiting = [(tmp_path, number) for number in range(8)]
        while waiting or len(done) < 8:
            while waiting and tasks.num_free:
                tasks.submit(waiting.pop())
            done.append(tasks.next_done())
        assert sorted((item[1], result) for item, result in done) == [(number, number**2) for number in range(8)]
        tasks.submit((tmp_path, 100))
        with pytest.raises(ConfigError, match="one hundred is too much"):
            tasks.next_done()
        tasks.submit((tmp_path, 101))
        with pytest.raises(WorkerError, match=r"failed 3 times, last error: RuntimeError: always"):
            tasks.next_done()
    assert {path.name for path in tmp_path.iterdir()} == {"killed", "hung", "raised"}


@pytest.mark.sim
def test_two_workers_record_the_same_bytes_as_one(tmp_path: Path) -> None:
    benchmark = MetaWorld(cameras=("corner_rgb",), rendering="fast", image_size=32)
    plan = Plan(
        benchmark,
        num_episodes=3,
        action_noise=0.2,
        max_steps=62,
        seed=1,
    )
    tasks = ("reach-v3", "reach-wall-v3")
    paths = {where: files_of(benchmark, tmp_path / where, tasks) for where in ("serial", "ray")}
    record_files(plan, paths["serial"], Cluster(in_process=True))
    record_files(plan, paths["ray"], TWO)
    for one, other in zip(paths["serial"].values(), paths["ray"].values(), strict=True):
        assert one.read_bytes() == other.read_bytes()
    with h5py.File(paths["ray"]["reach-v3"]) as file:
        attempts = [int(group.attrs["attempt"]) for group in file["data"].values()]
    assert attempts != [0, 1, 2], "an attempt must fail for this to say anything"
