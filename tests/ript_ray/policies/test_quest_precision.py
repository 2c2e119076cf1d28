"""QueST computing in bfloat16, with weights in float32."""

from dataclasses import replace

import numpy as np
import torch

from ript_ray.policies.quest.policy import QuestPolicy
from ript_ray.rl.learner import Learner
from tests.conftest import TINY_QUEST, line_parts, tiny_quest
from tests.ript_ray.rl.test_learner_oracle import make_groups


def half_quest() -> QuestPolicy:
    policy = QuestPolicy(replace(TINY_QUEST, precision="bfloat16"), action_dim=1, state_dims={"state": 2})
    policy.load_state_arrays(tiny_quest().state_arrays())
    return policy


def gradients(policy: QuestPolicy, record: dict[str, torch.Tensor]) -> torch.Tensor:
    policy.log_probs(record).sum().backward()
    return torch.cat(
        [parameter.grad.flatten() for parameter in policy.trainable().values() if parameter.grad is not None]
    )


def test_actors_and_learner_agree_in_bfloat16_and_weights_scores_and_moments_are_float32() -> None:
    half, full = half_quest(), tiny_quest()
    groups = make_groups(half, 3)
    rollout = groups[0].rollouts[0]
    record = {name: torch.from_numpy(array) for name, array in rollout.record.items()}
    scored = half.log_probs(record).detach()
    assert {rollout.log_probs_TU.dtype, rollout.record["context"].dtype} == {np.dtype(np.float32)}
    assert scored.dtype == torch.float32
    np.testing.assert_allclose(scored, rollout.log_probs_TU, atol=0.03)
    assert not torch.equal(scored, full.log_probs(record)), "products are computed in bfloat16"
    first, second = gradients(half, record), gradients(full, record)
    assert first.dtype == torch.float32
    assert torch.cosine_similarity(first, second, dim=0) > 0.99

    learner = Learner(half_quest, line_parts(half_quest).ppo, seed=5, num_threads=1)
    for group in groups:
        learner.receive(group)
    report = learner.update(range(3))
    assert report.error is None
    assert abs(report.first_mean_ratio - 1) < 0.01
    assert {array.dtype for array in learner.state().values()} == {np.dtype(np.float32)}
    assert {dtype for _, _, dtype in learner.weights().layout} == {"torch.float32"}
