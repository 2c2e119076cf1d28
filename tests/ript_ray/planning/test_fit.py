"""Who holds what, and what is refused; all sizes are made up."""

from dataclasses import replace

import pytest

from experiments import quickstart
from ript_ray.config.experiment import Experiment
from ript_ray.errors import ConfigError
from ript_ray.planning.estimate import estimate
from ript_ray.planning.fit import node_bytes, require_fit
from ript_ray.planning.footprint import Footprint
from ript_ray.planning.nodes import GIB, Nodes
from ript_ray.planning.processes import CUDA_BYTES, processes_of
from ript_ray.planning.timing import EnvironmentCost, PolicyCost
from ript_ray.planning.workload import Workload
from ript_ray.runtime.cluster import Cluster

LARGE = Footprint(
    weights={"bfloat16": 14 * GIB, "float32": GIB},
    trained={"lora": GIB // 2, "head": GIB // 2},
    num_weights=7_000_000_000,
    num_trained=GIB // 4,
    executed=8,
    decision_bytes=1000,
    acting_bytes=GIB,
    learning_bytes={1: GIB, 8: 8 * GIB},
    encoding_bytes=500_000,
)
ON_GPUS = Cluster(num_actors=2, gpus_per_actor=0.5, learner_gpus=1)
NODE = Nodes(cpus=8, gpus=2, gpu_memory_gib=80, memory_gib=512)


def work(micro_batch: int | None = 4) -> Workload:
    experiment: Experiment = quickstart.EXPERIMENT
    return Workload(replace(experiment, ppo=replace(experiment.ppo, micro_batch_decisions=micro_batch)), LARGE)


def check(nodes: Nodes, cluster: Cluster = ON_GPUS, micro_batch: int | None = 4) -> None:
    planned = work(micro_batch)
    processes = processes_of(planned, cluster, nodes.num_actors(cluster, 1), own_bytes=GIB, environments=None)
    require_fit(processes, nodes, planned)


def test_a_learner_holds_weights_gradients_moments_and_a_rollback_and_an_actor_weights_alone() -> None:
    actor, learner, *_ = processes_of(work(), ON_GPUS, 2, own_bytes=GIB, environments=None)
    assert actor.gpu_bytes == CUDA_BYTES + 15 * GIB + GIB
    minibatch = 32 * 19 * LARGE.decision_bytes
    assert learner.gpu_bytes == CUDA_BYTES + 15 * GIB + (1 + 2 + 3) * GIB + 4 * GIB + minibatch
    assert (actor.count, learner.count) == (2, 1)
    check(NODE)


def test_a_learner_keeps_encodings_for_the_passes_of_an_update_as_far_as_its_setting_goes() -> None:
    planned = work()
    ppo = planned.experiment.ppo
    cases: tuple[tuple[dict[str, int], int], ...] = (
        ({}, 96 * 19 * LARGE.encoding_bytes),
        ({"encoding_cache_bytes": 1000}, 1000),
        ({"num_iterations": 1}, 0),
    )
    for changes, kept in cases:
        fewer = replace(ppo, **changes)  # type: ignore[arg-type]
        changed = replace(planned, experiment=replace(planned.experiment, ppo=fewer))
        _, learner, *_ = processes_of(changed, ON_GPUS, 2, own_bytes=GIB, environments=None)
        batch = 96 * 19 * LARGE.decision_bytes
        assert learner.main_bytes == GIB + batch + 15 * GIB + kept


def test_an_actor_that_does_not_fit_into_its_share_is_refused_with_what_to_change() -> None:
    with pytest.raises(ConfigError) as refused:
        check(replace(NODE, gpu_memory_gib=24))
    text = str(refused.value)
    assert "a rollout actor needs 16.6 GiB of GPU memory, and its share, 0.5 of a GPU of 24.0 GiB, has 12.0" in text
    assert "set cluster.gpus-per-actor to at least 0.7" in text
    assert "GPUs of at least 34 GiB" in text


def test_a_learner_that_does_not_fit_is_told_the_largest_micro_batch_that_does() -> None:
    nodes = replace(NODE, gpu_memory_gib=24)
    cluster = replace(ON_GPUS, num_actors=1, gpus_per_actor=1)
    with pytest.raises(ConfigError, match=r"a learner needs .* set ppo\.micro-batch-decisions to 2"):
        check(nodes, cluster)
    check(nodes, cluster, micro_batch=2)


def test_a_node_without_enough_main_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"need .* GiB of main memory, and it has 32.0"):
        check(replace(NODE, memory_gib=32))


def test_actors_that_have_no_place_are_refused_with_how_to_name_other_machines() -> None:
    with pytest.raises(ConfigError, match=r"do not fit into 1 cores.*--num-nodes, --cpus, --gpus"):
        check(replace(NODE, cpus=1))


def test_environments_are_counted_by_task_and_by_process() -> None:
    cost = EnvironmentCost(first_bytes=100, more_bytes=10, reset_s=0, step_s=0.1, observe_s=0)

    def environments(cluster: Cluster) -> tuple[str, int]:
        actor, *_ = processes_of(work(), cluster, 1, own_bytes=0, environments=cost)
        (found,) = (each for each in actor.main if "environments" in each.what)
        return found.what, found.num_bytes

    assert environments(Cluster()) == ("24 environments", 100 + 23 * 10)  # 8 of each of 3 tasks
    assert environments(Cluster(max_tasks=1, env_processes=4)) == ("8 environments in 4 processes", 4 * 100 + 4 * 10)


def test_several_actors_share_a_node_and_one_process_holds_all_in_process() -> None:
    spread, together = (
        node_bytes(processes_of(work(), Cluster(), 4, own_bytes=GIB, environments=None), Nodes(num_nodes=number))
        for number in (4, 1)
    )
    assert together > spread + 3 * 15 * GIB
    (single,) = processes_of(work(), Cluster(in_process=True), 1, own_bytes=GIB, environments=None)
    assert single.main_bytes < spread


def test_an_update_takes_rollouts_and_passes_and_more_actors_or_processes_shorten_it() -> None:
    costs = (
        EnvironmentCost(0, 0, reset_s=0, step_s=0.05, observe_s=0),
        PolicyCost("cpu", "cpu", query_s=0.1, decision_s=0.001),
    )

    def slow(cluster: Cluster, num_actors: int) -> float:
        return estimate(work(), cluster, num_actors=num_actors, num_cpus=64, acceptance=0.5, costs=costs)[1].total_s

    request_s = 8 * 19 * 8 * 0.05 + 19 * 0.1
    learner_s = 8 * 96 * 19 * 0.001
    assert slow(Cluster(), 1) == pytest.approx(24 * request_s + learner_s)
    assert slow(Cluster(), 24) == pytest.approx(request_s + learner_s)
    assert slow(Cluster(env_processes=8), 1) == pytest.approx(24 * (request_s - 7 * 19 * 8 * 0.05) + learner_s)
