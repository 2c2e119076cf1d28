"""Actors and learners on real GPUs; `tests/ript_ray/rl/test_devices.py` has what can be tested without."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch

from ript_ray.policies.base import Policy
from ript_ray.rl.learner import UpdateReport
from ript_ray.rl.rollout_worker import summarize
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.ray_runtime import RayRuntime
from ript_ray.types import Weights
from tests.conftest import line_parts, start_ray, tiny_quest
from tests.ript_ray.rl.test_devices import POLICIES, REQUESTS, learn, quest, roll_groups

NUM_GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.ray, pytest.mark.skipif(NUM_GPUS == 0, reason="there is no GPU here")]

HALF: dict[str, Callable[[], Policy]] = {"quest in bfloat16": functools.partial(quest, precision="bfloat16")}


@pytest.fixture(scope="module")
def cluster_with_gpus() -> Iterator[None]:
    start_ray(num_cpus=4)
    yield
    ray.shutdown()


@pytest.mark.parametrize("kind", POLICIES)
def test_an_update_on_a_gpu_is_that_of_the_cpu_up_to_rounding(kind: str) -> None:
    build = POLICIES[kind]
    groups = roll_groups(build, "cpu")
    learner, report = learn(build, groups, "cpu", learning_rate=1e-4)
    theirs, their_report = learn(build, groups, "cuda", learning_rate=1e-4)
    assert their_report.loss == pytest.approx(report.loss, abs=1e-4)
    found, expected = (each.weights().buffer.view(np.float32) for each in (theirs, learner))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("kind", [*POLICIES, *HALF])
def test_a_gpu_gives_the_same_bits_twice_and_actor_and_learner_agree(kind: str) -> None:
    build = {**POLICIES, **HALF}[kind]
    checksums = set()
    for _ in range(2):
        groups = roll_groups(build, "cuda")
        learner, report = learn(build, groups, "cuda")
        assert report.first_mean_ratio == pytest.approx(1.0, abs=0.01 if kind in HALF else 1e-4)
        checksums.add(learner.checksum())
    assert len(checksums) == 1


def learn_on_ray(cluster: Cluster, num_learners: int = 1) -> tuple[Weights, UpdateReport]:
    parts = replace(line_parts(tiny_quest, minibatch_rollouts=3, learning_rate=1e-4), num_learners=num_learners)
    runtime = RayRuntime(parts, cluster)
    try:
        for request, group in zip(REQUESTS, roll_groups(tiny_quest, "cpu"), strict=True):
            runtime.give(request, summarize(group, None), group)
        runtime.start_update([request.index for request in REQUESTS])
        report = runtime.next_event()
        weights = runtime.broadcast()
        (summary,) = runtime.roll_out([replace(REQUESTS[0], index=1000)])
        assert (summary.version, summary.error) == (1, None)
    finally:
        runtime.close()
    assert isinstance(report, UpdateReport)
    assert report.error is None
    return weights, report


@pytest.mark.parametrize(
    ("cluster", "num_learners"),
    [
        (Cluster(num_actors=2, gpus_per_actor=0.25, learner_gpus=0.5), 1),
        (Cluster(num_actors=1, learner_gpus=1), 1),
        (Cluster(num_actors=1, learner_gpus=1), 2),
    ],
    ids=["one GPU for all", "actors on the CPU", "two learners by NCCL"],
)
def test_actors_and_learners_on_gpus_learn_as_on_the_cpu(
    cluster_with_gpus: None, cluster: Cluster, num_learners: int
) -> None:
    if num_learners > NUM_GPUS:
        pytest.skip("there is one GPU only")
    weights, report = learn_on_ray(cluster, num_learners)
    expected, expected_report = learn_on_ray(Cluster(num_actors=1))
    np.testing.assert_allclose(weights.buffer.view(np.float32), expected.buffer.view(np.float32), atol=1e-4)
    assert report.loss == pytest.approx(expected_report.loss, abs=1e-4)
