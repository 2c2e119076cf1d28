"""How many actors fit on the cores and GPUs of a cluster."""

import pytest
import ray
import torch

from ript_ray.errors import ConfigError, WorkerError
from ript_ray.policies.openvla_oft.config import OpenVLAOFTConfig
from ript_ray.policies.quest.config import QuestConfig
from ript_ray.runtime.cluster import Cluster, Node
from ript_ray.runtime.factory import require_fit
from ript_ray.runtime.ray_runtime import RayRuntime
from tests.conftest import line_parts, start_ray
from tests.fakes import TinyChunkPolicy


def test_a_cluster_fills_the_machine_by_default() -> None:
    assert Cluster().count_actors([Node(8)]) == 8
    assert Cluster(cpus_per_actor=2, learner_cpus=1).count_actors([Node(8)]) == 3
    assert Cluster(cpus_per_actor=3).count_actors([Node(4), Node(4), Node(2)]) == 2, "an actor cannot span nodes"
    with pytest.raises(
        ConfigError, match=r"9 rollout actors of 0\.5 cores .* do not fit into 1 \+ 1 cores, which have capacity for 4"
    ):
        Cluster(num_actors=9, cpus_per_actor=0.5).count_actors([Node(1), Node(1)])
    with pytest.raises(ConfigError, match="which have capacity for 0"):
        Cluster(cpus_per_actor=4).count_actors([Node(2)])
    assert Cluster(cpus_per_actor=0.2).count_actors([Node(2)]) == 10
    assert Cluster(cpus_per_actor=0.1, learner_cpus=1).count_actors([Node(2)]) == 10


def test_actors_and_learners_share_gpus_or_have_their_own() -> None:
    shared = Cluster(gpus_per_actor=0.25, learner_gpus=0.25)
    assert shared.count_actors([Node(8, gpus=1)]) == 3
    assert Cluster(gpus_per_actor=0.25, learner_gpus=1).count_actors([Node(8, gpus=2)]) == 4
    assert Cluster(gpus_per_actor=0.1).count_actors([Node(64, gpus=1)]) == 10, "not 9, by rounding"
    assert Cluster(gpus_per_actor=0.6).count_actors([Node(8, gpus=3)]) == 3, "nobody has shares of two GPUs"
    assert Cluster(gpus_per_actor=0.75, learner_gpus=0.5).count_actors([Node(8, gpus=2)]) == 1
    assert Cluster(gpus_per_actor=0.25).count_actors([Node(2, gpus=1)]) == 2, "cores are the limit"
    assert Cluster(learner_gpus=1).count_actors([Node(2, gpus=1), Node(16)]) == 18, "actors on the CPU"
    assert Cluster(gpus_per_actor=1, learner_gpus=1).num_fitting([Node(8, gpus=4)], num_learners=2) == 2


def test_actors_are_counted_beside_the_learner_where_it_is() -> None:
    cluster, nodes = Cluster(cpus_per_actor=2, learner_cpus=1), [Node(2, id="small"), Node(3, id="large")]
    assert cluster.num_fitting(nodes, 1, ["small"]) == 1, "one core is left there"
    assert cluster.num_fitting(nodes, 1, ["large"]) == 2
    assert cluster.num_fitting(nodes, 1, ["gone"]) == cluster.num_fitting(nodes) == 2, "it will take the largest"
    assert Cluster(learner_cpus=4).num_fitting(nodes) == 0
    assert not Cluster(learner_gpus=1).fits_learners(nodes, 1)
    assert Cluster(learner_gpus=1).num_fitting([Node(16), Node(16)]) == 0, "the learner comes first"
    assert Cluster(learner_gpus=1).num_fitting([Node(16), Node(16)], 1, ["gone"]) == 32, "actors go on without it"
    two = Cluster(learner_gpus=1, learner_cpus=4)
    assert two.num_fitting([Node(16), Node(8, gpus=1, id="one")], 2, ["gone", "one"]) == 20, (
        "beside the one that is left"
    )
    assert Cluster().fits_learners([], 1), "the driver's node has room for one that reserves nothing"


def test_a_learner_takes_a_node_that_has_both_its_cores_and_its_gpu() -> None:
    both = Cluster(learner_cpus=8, learner_gpus=1)
    assert both.num_fitting([Node(4, gpus=8), Node(64, gpus=4)]) == 4 + 56
    assert both.num_fitting([Node(4, gpus=8), Node(64)]) == 0
    assert Cluster(learner_cpus=0.1).fits_learners([Node(1)], 10)
    assert not Cluster(learner_cpus=0.1).fits_learners([Node(1)], 11)


def test_a_learner_that_moves_disturbs_no_actors_but_those_that_may_hold_what_it_needs() -> None:
    nodes = [Node(16, id="cores"), Node(8, gpus=1, id="gpu")]
    assert Cluster(learner_gpus=1).contested(nodes) == set(), "actors hold no GPU"
    assert Cluster(learner_gpus=1, learner_cpus=4).contested(nodes) == {"gpu"}
    assert Cluster(learner_gpus=1, gpus_per_actor=0.5).contested(nodes) == {"gpu"}
    assert Cluster(learner_cpus=4).contested(nodes) == {"cores", "gpu"}


def test_what_needs_more_gpus_than_there_are_is_refused_by_name() -> None:
    with pytest.raises(
        ConfigError,
        match=r"3 rollout actors of 1 cores and 0\.5 GPUs and a learner of 0 and 0\.5 do not fit into 8 \+ 2 cores and "
        r"1 \+ 0 GPUs, which have capacity for 1; lower .*cluster\.gpus-per-actor",
    ):
        Cluster(num_actors=3, gpus_per_actor=0.5, learner_gpus=0.5).count_actors([Node(8, gpus=1), Node(2)])
    for cluster in (Cluster(learner_gpus=1), Cluster(gpus_per_actor=0.1)):
        with pytest.raises(ConfigError, match="into 8 cores and 0 GPUs, which have capacity for 0"):
            cluster.count_actors([Node(8)])
    with pytest.raises(ConfigError, match=r"cluster\.gpus-per-actor must be 0, or from 0\.0001 to 1, not 2"):
        Cluster(gpus_per_actor=2)
    with pytest.raises(ConfigError, match=r"learner-gpus is 0\.5; with num-learners 2 it must be 0 or 1"):
        require_fit(Cluster(learner_gpus=0.5), 2, QuestConfig())
    with pytest.raises(ConfigError, match=r"cluster\.shard-base shares .* but num-learners is 1"):
        require_fit(Cluster(shard_base=True), 1, OpenVLAOFTConfig())
    with pytest.raises(ConfigError, match=r"cluster\.shard-base: policy quest has no frozen weights"):
        require_fit(Cluster(shard_base=True), 2, QuestConfig())


@pytest.mark.ray
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/ript_ray/runtime/test_gpu.py has the tests of a real GPU")
def test_actors_and_learner_get_their_share_of_a_gpu_from_ray_and_look_for_it() -> None:
    start_ray(num_cpus=2, num_gpus=1)
    parts = line_parts(lambda: TinyChunkPolicy("gaussian"))
    try:
        for cluster in (
            Cluster(num_actors=1, max_replacements=0, gpus_per_actor=0.5, start_timeout_s=600),
            Cluster(num_actors=1, max_replacements=0, learner_gpus=0.5, start_timeout_s=600),
        ):
            with pytest.raises(WorkerError, match=r"torch .* finds no GPU in this process \(CUDA_VISIBLE_DEVICES: 0\)"):
                RayRuntime(parts, cluster)
    finally:
        ray.shutdown()
