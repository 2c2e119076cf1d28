"""Several machines, simulated as Ray nodes: actors spread, nodes leave and join, groups are lost in transit."""

import functools
import itertools
import logging
import time
from collections.abc import Callable, Iterator

import pytest
import ray

from ript_ray.rl.callbacks import RolloutStats
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.train import train
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.ray_runtime import RayRuntime
from ript_ray.runtime.serial import SerialRuntime
from ript_ray.types import GroupSummary, RolloutRequest
from tests.conftest import RayNodes as Nodes
from tests.conftest import line_parts, line_stream
from tests.faulty import POLICY, HeavyPolicy
from tests.ript_ray.runtime.test_runtimes import SAMPLING, START_TIMEOUT_S, Log, checksums, next_summary, train_on

pytestmark = [pytest.mark.ray]

STORE = {"object_store_memory": 100_000_000}


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A head node with one core, for the learner, and two worker nodes of one core each."""
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, **STORE})
    try:
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")  # while the head is the only node
        for _ in range(2):
            nodes.add_node(num_cpus=1, **STORE)
        nodes.wait_for_nodes()
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


def actor_nodes(runtime: RayRuntime) -> list[str]:
    def find_node(worker) -> str:
        return ray.get_runtime_context().get_node_id()

    return [
        ray.get(actor.handle.__ray_call__.remote(find_node), timeout=300) for actor in runtime._pool._actors.values()
    ]


class Interruption(Log):
    """Call `do` in the middle of the second update."""

    def __init__(self, do: Callable[[], None]):
        super().__init__()
        self._do: Callable[[], None] | None = do

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        super().on_group(stats, summary, verdict)
        if stats.update == 2 and self._do is not None:
            self._do()
            self._do = None


def test_actors_spread_over_nodes_and_survive_the_loss_of_one(nodes: Nodes, caplog: pytest.LogCaptureFixture) -> None:
    expected = checksums(train_on(SerialRuntime(line_parts(POLICY))))
    caplog.set_level(logging.INFO, "ript_ray")
    cluster = Cluster(num_actors=4, cpus_per_actor=0.5, learner_cpus=1.0, start_timeout_s=START_TIMEOUT_S)
    runtime = RayRuntime(line_parts(POLICY), cluster)
    try:
        before = actor_nodes(runtime)
        assert sorted(before.count(node) for node in set(before)) == [2, 2]
        assert shortages(caplog) == []
        victim = next(iter(nodes.worker_nodes))
        log = Interruption(lambda: nodes.remove_node(victim, allow_graceful=False))
        train(runtime, line_stream(), sampling=SAMPLING, num_updates=3, seed=5, callbacks=[log])
        assert checksums(log) == expected, "a lost node must not change what is learned"
        expected_text = "rollout actors: asked for 4, got 2, waiting for 2; the live nodes have capacity for 2"
        keep_busy_until(runtime, lambda: shortages(caplog)[-1:] == [expected_text])
        nodes.add_node(num_cpus=1, **STORE)
        keep_busy_until(runtime, lambda: runtime._pool.num_ready == 4)
        assert shortages(caplog)[-1] == "rollout actors: asked for 4, got all"
        assert len(set(actor_nodes(runtime))) == 2
    finally:
        runtime.close()


def test_the_loss_of_nodes_is_no_fault_of_their_actors(nodes: Nodes) -> None:
    expected = checksums(train_on(SerialRuntime(line_parts(POLICY))))
    cluster = Cluster(
        num_actors=4, cpus_per_actor=0.5, learner_cpus=1.0, max_replacements=0, start_timeout_s=START_TIMEOUT_S
    )
    runtime = RayRuntime(line_parts(POLICY), cluster)

    def replace_both_nodes() -> None:
        for node in list(nodes.worker_nodes):
            nodes.remove_node(node, allow_graceful=False)
        for _ in range(2):
            nodes.add_node(num_cpus=1, **STORE)

    def await_replaced(number: int) -> None:
        """More, if Ray notices the death of a node so late that an actor was started there once again."""
        keep_busy_until(
            runtime, lambda: runtime.dispatch_counts.num_replaced >= number and runtime._pool.num_ready == 4
        )

    try:
        log = Interruption(replace_both_nodes)
        train(runtime, line_stream(), sampling=SAMPLING, num_updates=3, seed=5, callbacks=[log])
        assert checksums(log) == expected
        await_replaced(4)
        replace_both_nodes()
        await_replaced(8)
    finally:
        runtime.close()


def shortages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "ript_ray.runtime.capacity"]


def keep_busy_until(runtime: RayRuntime, reached: Callable[[], bool]) -> None:
    """Keep every actor busy, as a training loop does, for at most ten minutes."""
    deadline = time.monotonic() + 600
    for start in itertools.count(10_000, 4):
        if reached():
            return
        assert time.monotonic() < deadline
        for index in range(start, start + 4):
            runtime.launch(RolloutRequest(index, (line_stream().at(0),) * 9, tuple((index, k) for k in range(9))))
        for _ in range(4):
            runtime.discard(next_summary(runtime).index)


def test_a_group_lost_before_the_learner_received_it_is_rerun(nodes: Nodes) -> None:
    build = functools.partial(HeavyPolicy, "laplace")
    expected = checksums(train_on(SerialRuntime(line_parts(build)), num_updates=1))

    class LosesItsNode(RayRuntime):
        """The node of the first accepted group is lost before the learner has fetched the group."""

        def send_to_learner(self, index: int) -> None:
            if len(nodes.worker_nodes) == 2:
                for node in list(nodes.worker_nodes):
                    nodes.remove_node(node, allow_graceful=False)
                nodes.add_node(num_cpus=1, **STORE)
            super().send_to_learner(index)

    cluster = Cluster(num_actors=2, cpus_per_actor=0.5, learner_cpus=1.0, start_timeout_s=START_TIMEOUT_S)
    runtime = LosesItsNode(line_parts(build), cluster)
    try:
        log = train_on(runtime, num_updates=1)
        assert checksums(log) == expected
        assert log.records[0].ledger.lost >= 1
    finally:
        runtime.close()
