import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from ript_ray.errors import CheckpointError
from ript_ray.policies.base import Policy
from ript_ray.rl.batch import assemble, minibatches
from ript_ray.rl.learner import Learner
from ript_ray.rl.protocols import Components
from ript_ray.rl.rollout import EnvironmentPool, roll_out
from ript_ray.rl.weights import apply
from ript_ray.seeding import Purpose, seed_of
from ript_ray.types import Group, RolloutRequest, Version
from tests.conftest import line_parts, line_stream
from tests.fakes import LineBenchmark, TinyChunkPolicy


def groups(num_groups: int, policy: Policy) -> list[Group]:
    stream, pool = line_stream(), EnvironmentPool(LineBenchmark().make)
    requests = [
        RolloutRequest(index, (stream.at(index),) * 4, tuple((9, index, member) for member in range(4)))
        for index in range(num_groups)
    ]
    return [roll_out(request, policy, pool, max_steps=12, version=Version(0)) for request in requests]


def learner_of(parts: Components) -> Learner:
    return Learner(parts.build_policy, parts.ppo, seed=parts.seed, num_threads=1)


def adamw_oracle(parts: Components, made: list[Group]) -> dict[str, np.ndarray]:
    """N passes of the update in plain NumPy: closed-form gradients of the Gaussian policy, AdamW by its paper."""
    policy, ppo = parts.build_policy(), parts.ppo
    values = {name: value.detach().double().numpy().copy() for name, value in policy.trainable().items()}
    first, second = ({name: np.zeros_like(value) for name, value in values.items()} for _ in range(2))
    batch, count = assemble(made), 0
    for iteration in range(ppo.num_iterations):
        order = np.random.default_rng(seed_of(parts.seed, Purpose.MINIBATCHES, 0, iteration))
        for minibatch in minibatches(batch, ppo.minibatch_rollouts, order):
            state, chunk = (minibatch.record[name].double().numpy() for name in ("state", "chunk"))
            mean, scale = state @ values["mean.weight"].T + values["mean.bias"], np.exp(values["log_scale"])
            error = (chunk - mean) / scale
            log_prob = -0.5 * error**2 - values["log_scale"] - 0.5 * np.log(2 * np.pi)
            ratio = np.exp(log_prob - minibatch.old_log_probs_NU.double().numpy())
            advantage = minibatch.advantages_N.double().numpy()[:, None]
            flat = ((advantage > 0) & (ratio > 1 + ppo.clip_high)) | ((advantage < 0) & (ratio < 1 - ppo.clip_low))
            slope = np.where(flat, 0.0, -advantage * ratio) / ratio.size
            gradients = {
                "mean.weight": (slope * error / scale).T @ state,
                "mean.bias": (slope * error / scale).sum(0),
                "log_scale": (slope * (error**2 - 1)).sum(0),
            }
            norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
            count += 1
            for name, gradient in gradients.items():
                clipped = gradient * min(1.0, ppo.max_grad_norm / (norm + 1e-6))
                decay = ppo.weight_decay if values[name].ndim >= 2 else 0.0
                values[name] *= 1 - ppo.learning_rate * decay
                first[name] = 0.9 * first[name] + 0.1 * clipped
                second[name] = 0.999 * second[name] + 0.001 * clipped**2
                step = first[name] / (1 - 0.9**count) / (np.sqrt(second[name] / (1 - 0.999**count)) + 1e-8)
                values[name] -= ppo.learning_rate * step
    return values


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.01])
def test_an_update_equals_the_numpy_oracle(max_grad_norm: float) -> None:
    parts = line_parts(
        lambda: TinyChunkPolicy("gaussian"),
        num_iterations=4,
        minibatch_rollouts=5,
        clip_low=0.1,
        clip_high=0.3,
        weight_decay=0.1,
        max_grad_norm=max_grad_norm,
    )
    made = groups(5, parts.build_policy())
    learner = learner_of(parts)
    for group in made:
        learner.receive(group)
    report = learner.update([group.index for group in made])
    assert report.num_optimizer_steps == 16
    target = TinyChunkPolicy("gaussian")
    apply(learner.weights(), target)
    for name, expected in adamw_oracle(parts, made).items():
        np.testing.assert_allclose(target.state_dict()[name].numpy(), expected, atol=2e-5, err_msg=name)


def test_each_update_increments_the_version_and_uses_only_the_given_groups() -> None:
    parts = line_parts(lambda: TinyChunkPolicy("laplace"))
    made = groups(4, parts.build_policy())
    learner = learner_of(parts)
    for group in made:
        learner.receive(group)
    assert learner.weights().version == 0
    report = learner.update([1, 3])
    assert report.num_decisions == sum(len(rollout.log_probs_TU) for i in (1, 3) for rollout in made[i].rollouts)
    assert learner.weights().version == 1
    with pytest.raises(KeyError):
        learner.update([1])


def test_the_result_does_not_depend_on_the_order_of_arrival() -> None:
    parts = line_parts(lambda: TinyChunkPolicy("laplace"))
    made = groups(4, parts.build_policy())
    checksums = set()
    for arrival in ([0, 1, 2, 3], [3, 1, 0, 2]):
        learner = learner_of(parts)
        for index in arrival:
            learner.receive(made[index])
        learner.update([0, 1, 2, 3])
        checksums.add(learner.weights().checksum)
    assert len(checksums) == 1


def test_the_first_step_starts_from_ratio_one() -> None:
    parts = line_parts(lambda: TinyChunkPolicy("gaussian"), num_iterations=1, minibatch_rollouts=100)
    made = groups(3, parts.build_policy())
    learner = learner_of(parts)
    for group in made:
        learner.receive(group)
    report = learner.update([0, 1, 2])
    assert report.mean_ratio == pytest.approx(1.0, abs=1e-5)
    assert report.clip_fraction == 0.0
    assert torch.tensor(report.grad_norm).isfinite()


def poisoned(groups: list[Group]) -> list[Group]:
    """The same groups with old log-probabilities so low that ratios overflow."""
    rollouts = [
        replace(rollout, log_probs_TU=np.full_like(rollout.log_probs_TU, -1e30)) for rollout in groups[0].rollouts
    ]
    return [replace(groups[0], rollouts=tuple(rollouts)), *groups[1:]]


def saved(learner: Learner) -> dict[str, np.ndarray]:
    return {**learner.state(), "weights": learner.weights().buffer}


def test_an_update_with_a_non_finite_loss_is_rolled_back_and_the_next_one_works() -> None:
    parts = line_parts(lambda: TinyChunkPolicy("gaussian"), minibatch_rollouts=4)
    made = groups(4, parts.build_policy())
    learner, untouched = learner_of(parts), learner_of(parts)
    for each in (learner, untouched):
        for group in made:
            each.receive(group)
        assert each.update([0, 1, 2, 3]).error is None
    before = saved(learner)
    for group in poisoned(made):
        learner.receive(group)
    report = learner.update([0, 1, 2, 3])
    assert report.error is not None
    assert re.fullmatch(r"update 2: the loss is \S+, the gradient norm is nan: not finite", report.error)
    after = saved(learner)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert learner.weights().version == 2
    for group in made:
        learner.receive(group)
    assert learner.update([0, 1, 2, 3]).error is None


def test_an_update_with_non_finite_weights_is_rolled_back() -> None:
    parts = line_parts(
        lambda: TinyChunkPolicy("gaussian"),
        num_iterations=1,
        minibatch_rollouts=100,
        learning_rate=1e20,
        weight_decay=1e20,
    )
    learner = learner_of(parts)
    for group in groups(2, parts.build_policy()):
        learner.receive(group)
    before = saved(learner)["weights"]
    assert learner.update([0, 1]).error == "update 1: the weights are not finite"
    np.testing.assert_array_equal(saved(learner)["weights"], before)


def test_incomplete_moments_are_refused() -> None:
    parts = line_parts(lambda: TinyChunkPolicy("gaussian"))
    learner = learner_of(parts)
    for group in groups(2, parts.build_policy()):
        learner.receive(group)
    learner.update([0, 1])
    state = learner.state()
    del state["exp_avg/log_scale"]
    with pytest.raises(CheckpointError, match=r"does not fit the policy:\n  missing exp_avg/log_scale$"):
        learner_of(parts).restore(Version(1), state)
    learner_of(parts).restore(Version(1), {})  # every update so far was skipped
