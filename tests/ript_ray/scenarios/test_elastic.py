"""Spot machines, simulated as Ray nodes: actors follow the nodes that join, are announced to leave, or are gone."""

import functools
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray._private.node import Node as Process
from torch import nn

from ript_ray.rl.callbacks import RolloutStats, UpdateRecord
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.train import train
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.ray_runtime import RayRuntime
from ript_ray.runtime.serial import SerialRuntime
from ript_ray.types import GroupSummary
from tests.conftest import RayNodes as Nodes
from tests.conftest import line_parts, line_stream, tiny_quest
from tests.faulty import HeavyPolicy
from tests.ript_ray.runtime.test_runtimes import SAMPLING, Log, checksums, train_on

pytestmark = [pytest.mark.ray]

STORE = {"object_store_memory": 100_000_000}
POLICY = functools.partial(HeavyPolicy, "laplace")
RAY = Path(sys.executable).with_name("ray")
DEADLINE_S = 600.0


class LargePolicy(HeavyPolicy):
    """Its weights and moments are large enough to stay on the learner's node."""

    def __init__(self) -> None:
        super().__init__("laplace")
        self.ballast = nn.Parameter(torch.zeros(50_000))

    def _at(self, state: torch.Tensor) -> torch.distributions.Distribution:
        return self._distribution(self.mean(state) + 0 * self.ballast.sum(), self.log_scale.exp())


class DeclaredGPU(Cluster):
    """Its learner reserves a GPU that is in Ray's books alone, and computes on the CPU."""

    @property
    def learner_device(self) -> str:
        return "cpu"


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A head node without cores, as on Kubernetes."""
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **STORE})
    try:
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


class Events(Log):
    """Do something amid an update, once its first group has finished, or after one."""

    def __init__(
        self, *, amid: Mapping[int, Callable[[], None]] | None = None, after: Mapping[int, Callable[[], None]]
    ):
        super().__init__()
        self._amid, self._after = dict(amid or {}), after

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        super().on_group(stats, summary, verdict)
        self._amid.pop(stats.update, lambda: None)()

    def on_update(self, record: UpdateRecord) -> None:
        super().on_update(record)
        self._after.get(record.stats.update, lambda: None)()


class OnMessage(logging.Handler):
    """Do something when a message with certain words is logged for the first time."""

    def __init__(self, words: str, do: Callable[[], None]):
        super().__init__()
        self._words, self._do = words, do

    def emit(self, record: logging.LogRecord) -> None:
        if self._words in record.getMessage():
            do, self._do = self._do, lambda: None
            do()


def poll_until(runtime: RayRuntime, reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not reached():
        assert time.monotonic() < deadline
        runtime._pool.poll()


def poll_until_logged(runtime: RayRuntime, caplog: pytest.LogCaptureFixture, words: str) -> None:
    """Ray may take half a minute to notice what happened to a node."""
    poll_until(runtime, lambda: any(words in message for message in caplog.messages))


def nodes_of_actors(runtime: RayRuntime) -> list[str]:
    return [actor.node for actor in runtime._pool._actors.values() if actor.node is not None]


def announce(nodes: Nodes, node: Process) -> None:
    """Tell Ray that a node is about to leave, as a cloud's notice does."""
    reason = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot machine")
    command = [str(RAY), "drain-node", "--address", nodes.address, "--node-id", node.node_id, *reason]
    subprocess.run([*command, "--deadline-remaining-seconds", "600"], check=True, timeout=DEADLINE_S)


LOG_OF_THE_NODES = [
    "node A has joined: cores 1, GPUs 0",
    "rollout actors: 3 now fit on the nodes, before 2",
    "node B is gone",
    "rollout actors: 2 now fit on the nodes, before 3",
    "node C is about to leave in N s: its rollout actors finish their groups and get no others",
    "rollout actors: 1 now fit on the nodes, before 2",
    "node C has left, as announced",
    "node A is gone",
    "rollout actors: 0 now fit on the nodes, before 1",
    "there is no rollout actor, and no live node has capacity for one: waiting for a node to join, for at most "
    "1800 s (cluster.node-timeout-s)",
    "node D has joined: cores 1, GPUs 0",
    "rollout actors: 1 now fit on the nodes, before 0",
]


def test_actors_follow_the_nodes_and_the_weights_are_those_of_an_undisturbed_run(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    expected = checksums(train_on(SerialRuntime(line_parts(POLICY)), num_updates=6))
    caplog.set_level(logging.INFO, "ript_ray")
    forced, announced = (nodes.add_node(num_cpus=1, **STORE) for _ in range(2))
    runtime = RayRuntime(line_parts(POLICY), Cluster(start_timeout_s=DEADLINE_S))

    def has(number: int) -> bool:
        return has_actors(runtime, number)

    def one_joins() -> None:
        nodes.add_node(num_cpus=1, **STORE)
        poll_until(runtime, lambda: has(3))

    def one_is_lost() -> None:
        nodes.remove_node(forced, allow_graceful=False)
        poll_until_logged(runtime, caplog, "rollout actors: 2 now fit")

    def one_is_announced_to_leave() -> None:
        announce(nodes, announced)
        poll_until(runtime, lambda: announced.node_id not in nodes_of_actors(runtime) and has(1))
        nodes.remove_node(announced, allow_graceful=True)
        poll_until_logged(runtime, caplog, "has left, as announced")

    def all_leave_and_one_joins() -> None:
        for node in list(nodes.worker_nodes):
            nodes.remove_node(node, allow_graceful=False)
        poll_until_logged(runtime, caplog, "waiting for a node to join")
        assert runtime.num_actors == 0
        nodes.add_node(num_cpus=1, **STORE)

    log = Events(
        after={1: one_joins},
        amid={
            3: one_is_lost,
            4: one_is_announced_to_leave,
            5: all_leave_and_one_joins,
        },
    )
    try:
        assert has(2)
        train(runtime, line_stream(), sampling=SAMPLING, num_updates=6, seed=5, callbacks=[log])
        assert checksums(log) == expected
        assert has(1)
        assert [record.ledger.balance for record in log.records] == [0] * 6
        assert log.records[-1].ledger.trained == 4 * 6
        assert logged(caplog) == LOG_OF_THE_NODES
    finally:
        runtime.close()


def has_actors(runtime: RayRuntime, number: int) -> bool:
    return runtime.num_alive == runtime.num_actors == number


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the log says of nodes and of the number of actors, with letters for nodes in the order of mention."""
    letters: dict[str, str] = {}
    lines = []
    for record in caplog.records:
        if record.name in ("ript_ray.runtime.nodes", "ript_ray.runtime.capacity"):
            line = re.sub(r" in \d+ s:", " in N s:", record.message)
            for name in re.findall(r"node (\S+ \(\w+\))", line):
                line = line.replace(name, letters.setdefault(name, "ABCDEF"[len(letters)]))
            lines.append(line)
    return lines


def test_a_learner_whose_node_is_lost_finds_room_on_one_that_actors_have_filled(nodes: Nodes) -> None:
    expected = checksums(train_on(SerialRuntime(line_parts(LargePolicy))))
    sizes = [nodes.add_node(num_cpus=2, **STORE) for _ in range(2)]
    cluster = Cluster(learner_cpus=1.0, start_timeout_s=DEADLINE_S)
    runtime = RayRuntime(line_parts(LargePolicy), cluster)
    assert runtime._learners is not None
    learners = runtime._learners

    def the_learners_node_is_lost() -> None:
        poll_until(runtime, lambda: has_actors(runtime, 3))
        (node,) = (node for node in sizes if node.node_id in learners.nodes)
        (learner,) = learners._learners
        nodes.remove_node(node, allow_graceful=False)
        await_death(learner)  # otherwise it may begin the update, which cannot be repeated: its groups are lost, too

    log = Events(amid={2: the_learners_node_is_lost}, after={})
    try:
        train(runtime, line_stream(), sampling=SAMPLING, num_updates=3, seed=5, callbacks=[log])
        assert checksums(log) == expected
        poll_until(runtime, lambda: has_actors(runtime, 1))
    finally:
        runtime.close()


def await_death(actor: Any) -> None:
    """Wait until an actor answers no more; its process may outlive its node by a second or more."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            ray.get(actor.__ray_ready__.remote(), timeout=DEADLINE_S)
        except ray.exceptions.RayActorError:
            return
        time.sleep(0.1)


def test_nodes_of_another_kind_of_processor_roll_out_too_and_the_log_names_the_kind_once(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    nodes.add_node(num_cpus=1, env_vars={"ATEN_CPU_CAPABILITY": "default"}, **STORE)
    runtime = RayRuntime(line_parts(POLICY), Cluster(start_timeout_s=DEADLINE_S))
    try:
        log = train_on(runtime, num_updates=2)
        assert [record.report.error for record in log.records] == [None, None]
        assert all(abs(record.report.first_mean_ratio - 1) < 1e-5 for record in log.records)
        kinds = [message for message in caplog.messages if "has another kind of processor" in message]
        assert len(kinds) == 1
        assert "default" in kinds[0]
    finally:
        runtime.close()


def gpus_of(workers: Iterable[Any]) -> list[list[str]]:
    """Return the numbers of the GPUs that Ray gave to each worker."""

    def find(worker: object) -> list[str]:
        return ray.get_runtime_context().get_accelerator_ids()["GPU"]

    return ray.get([worker.__ray_call__.remote(find) for worker in workers], timeout=DEADLINE_S)


def test_nodes_without_a_gpu_roll_out_for_a_learner_on_a_node_with_one_and_either_kind_may_be_lost(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    expected = checksums(train_on(SerialRuntime(line_parts(tiny_quest)), num_updates=4))
    caplog.set_level(logging.INFO, "ript_ray")
    staying, lost = (nodes.add_node(num_cpus=1, **STORE) for _ in range(2))
    with_gpu = nodes.add_node(num_cpus=1, num_gpus=1, **STORE)
    cluster = DeclaredGPU(learner_cpus=1.0, learner_gpus=1.0, address=nodes.address, start_timeout_s=DEADLINE_S)
    runtime = RayRuntime(line_parts(tiny_quest), cluster)
    assert runtime._learners is not None
    learners, others = runtime._learners, []

    def require_places(gpu: Process, *rolling_out: Process) -> None:
        poll_until(runtime, lambda: has_actors(runtime, len(rolling_out)))
        assert learners.nodes == [gpu.node_id]
        assert gpus_of(learners._learners) == [["0"]]
        assert sorted(nodes_of_actors(runtime)) == sorted(node.node_id for node in rolling_out)
        assert gpus_of(actor.handle for actor in runtime._pool._actors.values()) == [[] for _ in rolling_out]

    def one_that_rolls_out_is_lost() -> None:
        nodes.remove_node(lost, allow_graceful=False)
        poll_until_logged(runtime, caplog, "rollout actors: 1 now fit on the nodes, before 2")

    def the_one_with_the_gpu_is_lost() -> None:
        nodes.remove_node(with_gpu, allow_graceful=False)

    def another_joins() -> None:
        others.append(nodes.add_node(num_cpus=1, num_gpus=1, **STORE))

    waited_for = OnMessage("no live node has room for a learner of 1 cores and 1 GPUs", another_joins)
    logging.getLogger("ript_ray.runtime.nodes").addHandler(waited_for)
    log = Events(amid={2: one_that_rolls_out_is_lost, 3: the_one_with_the_gpu_is_lost}, after={})
    try:
        require_places(with_gpu, staying, lost)
        train(runtime, line_stream(), sampling=SAMPLING, num_updates=4, seed=5, callbacks=[log])
        assert checksums(log) == expected
        require_places(*others, staying)
    finally:
        logging.getLogger("ript_ray.runtime.nodes").removeHandler(waited_for)
        runtime.close()
