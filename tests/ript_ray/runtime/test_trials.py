"""Trials on a real Ray cluster: who is stopped early and how, who has failed and why, what was reserved for them."""

import json
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import ray
from ray.util import placement_group

from ript_ray.runtime.autoscaler import RoomRequest
from ript_ray.runtime.capacity import Room
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.nodes import NodeWatch
from ript_ray.runtime.placement import RESERVED, placed
from ript_ray.runtime.ray_runtime import RayRuntime
from ript_ray.runtime.trials import EarlyStopping, TrialEnd, TrialProcess, _await_saved, _resources, run_trials
from tests.commands import environment
from tests.conftest import RayNodes as Nodes
from tests.conftest import line_parts, tiny_quest

GOOD = "write({1: 0.9, 2: 1.0})"
BAD = """
def save(*_):
    write({1: 0.1, 2: 0.2})  # the last update, saved as it ends
    raise SystemExit(130)

signal.signal(signal.SIGTERM, save)
write({1: 0.1})
time.sleep(600)
"""
FAILING = "print('error: there is no such thing', flush=True); print('goodbye', flush=True); raise SystemExit(3)"
BEGIN = """
import json, os, pathlib, signal, sys, time
progress = pathlib.Path(sys.argv[1])
assert os.environ['RIPT_RAY_PLACEMENT_GROUP'] and os.environ['RAY_ADDRESS']

def write(content):
    progress.with_suffix('.new').write_text(json.dumps(content))
    progress.with_suffix('.new').rename(progress)
"""


def read(path: Path) -> dict[int, float]:
    content = json.loads(path.read_text()) if path.exists() else {}
    return {int(update): success for update, success in content.items()}


def trial(name: str, code: str, folder: Path) -> TrialProcess:
    progress = folder / f"{name}.json"
    command = (sys.executable, "-c", f"{BEGIN}\n{code}", str(progress))
    return TrialProcess(name, command, folder / f"{name}.log", partial(read, progress), lambda: False)


@pytest.mark.ray
def test_a_bad_trial_is_stopped_and_saves_and_one_that_fails_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    codes = {"bad": BAD, "failing": FAILING, "good": GOOD}
    ends: dict[str, tuple[TrialEnd, str]] = {}
    run_trials(
        [trial(name, code, tmp_path) for name, code in codes.items()],
        Cluster(in_process=True),
        scratch=tmp_path,
        place=Cluster(),
        on_end=lambda name, end, why: ends.update({name: (end, why)}),
        stopping=EarlyStopping(grace_updates=1, keep_one_in=2, num_updates=10, past=[{1: 0.5}, {1: 0.6, 2: 0.7}]),
    )
    assert ends == {
        "bad": (TrialEnd.STOPPED, ""),
        "failing": (TrialEnd.FAILED, "there is no such thing"),
        "good": (TrialEnd.FINISHED, ""),
    }
    wait_until(lambda: read(tmp_path / "bad.json") == {1: 0.1, 2: 0.2})  # Tune waits for some seconds


def test_a_trial_reserves_its_own_process_or_its_learners_and_actors() -> None:
    whole = Cluster(in_process=True, env_processes=3, learner_gpus=0.5, gpus_per_actor=0.25)
    assert _resources(whole, 1).bundles == [{"CPU": 3, "GPU": 0.5}]
    apart = Cluster(num_actors=2, cpus_per_actor=0.5, learner_cpus=1.0)
    assert _resources(apart, 1).required_resources == {"CPU": 2.0}
    assert len(_resources(Cluster(num_actors=2), 1).bundles) == 2  # a learner that reserves nothing


def test_a_sweep_that_is_stopped_waits_for_what_saves_longer_than_tune_waits() -> None:
    saving = [threading.Event() for _ in range(2)]
    for each in saving:
        each.set()
    trials = [TrialProcess(f"trial-{number}", (), Path(), dict, each.is_set) for number, each in enumerate(saving)]
    waiting = threading.Thread(target=_await_saved, args=[trials])
    waiting.start()
    saving[0].clear()
    waiting.join(0.5)
    assert waiting.is_alive()
    saving[1].clear()
    waiting.join(60)
    assert not waiting.is_alive()


def find_node() -> str:
    return ray.get_runtime_context().get_node_id()


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.ray
def test_a_trial_counts_and_takes_what_is_reserved_for_it_and_not_what_others_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 8, "object_store_memory": 100_000_000})
    cluster = Cluster(num_actors=2, learner_cpus=1.0)
    try:
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        lost = nodes.add_node(num_cpus=8, object_store_memory=100_000_000)
        nodes.wait_for_nodes()
        group = placement_group(_resources(cluster, 1).bundles, "SPREAD")  # two on one node, one on the other
        others = placement_group([{"CPU": 6.0}, {"CPU": 6.0}], "STRICT_SPREAD")
        ray.get([group.ready(), others.ready()], timeout=600)
        monkeypatch.setenv(RESERVED, group.id.hex())
        watch = NodeWatch(cluster, 1, lambda: [], RoomRequest(cluster, 1))
        assert watch.look() == Room(2)
        learner = ray.remote(num_cpus=1.0, scheduling_strategy=placed("SPREAD", 0))(find_node)
        where = ray.util.placement_group_table(group)["bundles_to_node_id"]
        assert ray.get(learner.remote(), timeout=600) == where[0]
        runtime = RayRuntime(line_parts(tiny_quest), cluster, with_learner=False)
        assert {slot: actor.node for slot, actor in runtime._pool._actors.items()} == {0: where[1], 1: where[2]}
        runtime.close()
        nodes.remove_node(lost, allow_graceful=False)
        wait_until(lambda: watch.look().num_actors < 2)
        nodes.add_node(num_cpus=8, object_store_memory=100_000_000)
        wait_until(lambda: watch.look() == Room(2))
    finally:
        ray.shutdown()
        nodes.shutdown()
