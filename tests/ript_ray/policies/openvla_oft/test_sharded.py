"""Learners of the tiny OpenVLA-OFT that hold a part of the frozen base each take the steps of one."""

import multiprocessing
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import torch
from torch.distributed.tensor import DTensor

from ript_ray.policies.openvla_oft.policy import OpenVLAOFTPolicy
from ript_ray.rl.learner import Learner, UpdateReport
from ript_ray.rl.row_exchange import SharedGroup
from ript_ray.types import Group, Rollout, Version
from tests.openvla_oft_fixture import ADAPTOR
from tests.ript_ray.policies.openvla_oft.test_policy import INSTRUCTIONS, SPEC, TINY, observations
from tests.ript_ray.policies.openvla_oft.test_post_training import OFT_PPO

LENGTHS = (3, 1)
"""Decisions of each rollout, a minibatch each: the second of two learners has fewer micro-batches, and then no row."""

# One decision at a time: in float32 their gradients depend on how many are computed at once (to 4e-6 of their norm; to
# 1e-15 in float64), and AdamW magnifies that where clipping leaves a gradient of about its epsilon, to 2% of a step.
PPO = replace(
    OFT_PPO,
    minibatch_rollouts=1,
    micro_batch_decisions=1,
    recompute_log_probs=True,
    learning_rate=1e-4,
    learning_rates={},
)


def build() -> OpenVLAOFTPolicy:
    torch.manual_seed(0)
    return replace(TINY, adaptor=ADAPTOR).build(SPEC)


def make_group(policy: OpenVLAOFTPolicy) -> Group:
    def rollout(member: int, length: int) -> Rollout:
        generators = [np.random.default_rng((member, row)) for row in range(2)]
        made = policy.act(observations(), INSTRUCTIONS, generators)
        rows = np.arange(length) % 2
        record = {name: array[rows] for name, array in made.record.items()}
        return Rollout(member == 0, length, record, made.log_probs_BU[rows], made.valid_BU[rows])

    return Group(0, Version(0), tuple(rollout(member, length) for member, length in enumerate(LENGTHS)))


def new_learner() -> Learner:
    return Learner(build, PPO, seed=5, num_threads=1, parameter_groups=TINY.parameter_groups)


def learn(learner: Learner) -> tuple[np.ndarray, UpdateReport]:
    report = learner.update([0])
    return learner.weights().buffer.view(np.float32).copy(), report


def base_bytes(learner: Learner) -> int:
    """Bytes of frozen weights that a learner holds between passes."""
    policy: Any = learner._policy
    frozen = [value for value in policy.parameters() if not value.requires_grad]
    local = [value.to_local() if isinstance(value, DTensor) else value for value in frozen]
    return sum(value.untyped_storage().nbytes() for value in local)


def run_learner(rank: int, group: Group, stores: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    for shard_on in (None, "cpu"):
        learner = new_learner()
        if rank == 0:
            meeting = learner.open_store("127.0.0.1")
            stores.put(meeting)
        else:
            meeting = stores.get(timeout=600)
        learner.join(meeting, host="127.0.0.1", rank=rank, size=2, timeout_s=300, shard_on=shard_on)
        if rank == 1:
            learner.receive(group)
        else:
            learner.receive_outline(SharedGroup(group, home=1).outline)
        weights, report = learn(learner)
        connections = psutil.Process().net_connections("tcp")
        hosts = {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}
        answers.put((shard_on, weights, report, base_bytes(learner), hosts))


def test_two_learners_with_half_of_the_base_each_take_the_steps_of_one_to_1e_6() -> None:
    torch.set_num_threads(1)
    alone = new_learner()
    group = make_group(build())
    alone.receive(group)
    weights, report = learn(alone)
    context = multiprocessing.get_context("fork")
    answers, stores = context.Queue(), context.Queue()
    for rank in range(2):
        context.Process(target=run_learner, args=(rank, group, stores, answers), daemon=True).start()
    found = [answers.get(timeout=600) for _ in range(4)]
    for shard_on, their_weights, their_report, num_bytes, hosts in found:
        assert hosts == {"127.0.0.1"}
        np.testing.assert_allclose(their_weights, weights, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(their_weights, found[0][1], err_msg="sharded or whole, the same bits")
        assert abs(their_report.loss - report.loss) < 1e-5
        assert their_report.num_optimizer_steps == report.num_optimizer_steps
        share = num_bytes / base_bytes(alone)
        assert share == 1 if shard_on is None else 0.5 <= share < 0.55, "heads and norms stay whole"
