"""An update equals its formulas in NumPy, float64, from the rollouts on: it shares no code with the learner."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ript_ray.config.rl import PPO
from ript_ray.rl.learner import Learner
from ript_ray.rl.rollout import EnvironmentPool, roll_out
from ript_ray.rl.weights import apply
from ript_ray.seeding import Purpose, seed_of
from ript_ray.types import Group, Rollout, RolloutRequest, Version
from tests.conftest import line_stream, tiny_quest
from tests.fakes import LineBenchmark, TinyChunkPolicy

SEED = 5
GROUPS = {"mean": "mean.", "scale": "log_scale"}
"""Parameter groups of the tiny policy."""

Values = dict[str, NDArray[np.float64]]


def make_groups(policy: Any, num_groups: int = 5) -> list[Group]:
    stream, pool = line_stream(), EnvironmentPool(LineBenchmark().make)
    requests = [
        RolloutRequest(index, (stream.at(index),) * 4, tuple((9, index, member) for member in range(4)))
        for index in range(num_groups)
    ]
    return [roll_out(request, policy, pool, max_steps=12, version=Version(0)) for request in requests]


def with_gaps(groups: Sequence[Group]) -> list[Group]:
    """The same groups, of which every third unit of each rollout does not count."""

    def gap(rollout: Rollout) -> Rollout:
        valid = np.arange(rollout.valid_TU.size).reshape(rollout.valid_TU.shape) % 3 != 1
        return replace(rollout, valid_TU=valid)

    return [replace(group, rollouts=tuple(map(gap, group.rollouts))) for group in groups]


def advantages(group: Group) -> list[float]:
    rewards = [float(rollout.success) for rollout in group.rollouts]
    return [reward - (sum(rewards) - reward) / (len(rewards) - 1) for reward in rewards]


def gradients_of(values: Values, rollouts: Sequence[tuple[Rollout, float]], ppo: PPO) -> Values:
    """Closed-form gradients of the loss of one minibatch of the Gaussian policy."""
    total = sum(int(rollout.valid_TU.sum()) for rollout, _ in rollouts)
    sums = {name: np.zeros_like(value) for name, value in values.items()}
    for rollout, advantage in rollouts:
        state, chunk = (rollout.record[name].astype(np.float64) for name in ("state", "chunk"))
        scale = np.exp(values["log_scale"])
        error = (chunk - state @ values["mean.weight"].T - values["mean.bias"]) / scale
        log_prob = -0.5 * error**2 - values["log_scale"] - 0.5 * np.log(2 * np.pi)
        ratio = np.exp(log_prob - rollout.log_probs_TU.astype(np.float64))
        is_flat = ratio > 1 + ppo.clip_high if advantage > 0 else ratio < 1 - ppo.clip_low
        weight = 1 / total if ppo.loss_average == "unit" else 1 / len(rollouts) / rollout.valid_TU.sum()
        slope = np.where(is_flat | ~rollout.valid_TU, 0.0, -advantage * ratio * weight)
        sums["mean.weight"] += (slope * error / scale).T @ state
        sums["mean.bias"] += (slope * error / scale).sum(0)
        sums["log_scale"] += (slope * (error**2 - 1)).sum(0)
    return sums


def clip(gradients: Values, ppo: PPO) -> Values:
    """Scale each group with a norm of its own by that, all others together by the common one."""
    group_of = {
        name: next((group for group in ppo.max_grad_norms if name.startswith(GROUPS[group])), "") for name in gradients
    }
    scales = {}
    for group in set(group_of.values()):
        squares = sum((gradients[name] ** 2).sum() for name in gradients if group_of[name] == group)
        scales[group] = min(1.0, ppo.max_grad_norms.get(group, ppo.max_grad_norm) / (np.sqrt(squares) + 1e-6))
    return {name: gradient * scales[group_of[name]] for name, gradient in gradients.items()}


def rate_of(name: str, ppo: PPO) -> float:
    rates = [rate for group, rate in ppo.learning_rates.items() if name.startswith(GROUPS[group])]
    return rates[0] if rates else ppo.learning_rate


def oracle(policy: TinyChunkPolicy, groups: Sequence[Group], ppo: PPO) -> Values:
    """N passes over the minibatches of the first update, AdamW by its paper."""
    values = {name: value.detach().double().numpy().copy() for name, value in policy.trainable().items()}
    first, second = ({name: np.zeros_like(value) for name, value in values.items()} for _ in range(2))
    rollouts = [pair for group in groups for pair in zip(group.rollouts, advantages(group), strict=True)]
    count = 0
    for iteration in range(ppo.num_iterations):
        order = np.random.default_rng(seed_of(SEED, Purpose.MINIBATCHES, 0, iteration)).permutation(len(rollouts))
        num_parts = -(-len(rollouts) // ppo.minibatch_rollouts)
        sizes = [len(rollouts) // num_parts + (part < len(rollouts) % num_parts) for part in range(num_parts)]
        for end, size in zip(np.cumsum(sizes), sizes, strict=True):
            count += 1
            chosen = [rollouts[place] for place in order[end - size : end]]
            for name, gradient in clip(gradients_of(values, chosen, ppo), ppo).items():
                rate, decay = rate_of(name, ppo), ppo.weight_decay if values[name].ndim >= 2 else 0.0
                values[name] *= 1 - rate * decay
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                step = first[name] / (1 - 0.9**count) / (np.sqrt(second[name] / (1 - 0.999**count)) + 1e-8)
                values[name] -= rate * step
    return values


def learner_of(policy: Any, ppo: PPO, parameter_groups: Mapping[str, str] | None = None) -> Learner:
    return Learner(lambda: policy, ppo, seed=SEED, num_threads=1, parameter_groups=parameter_groups)


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "a small gradient norm": {"max_grad_norm": 0.01},
    "rollouts of equal weight": {"loss_average": "rollout"},
    "single decisions": {"micro_batch_decisions": 1},
    "passes side by side": {"parallel_passes": 3},
    "parts of 7, each in 2 passes": {"micro_batch_decisions": 7, "parallel_passes": 2},
    "rollouts of equal weight in parts of 7": {"loss_average": "rollout", "micro_batch_decisions": 7},
    "two learning rates": {"learning_rates": {"scale": 3e-2}},
    "norms of both groups": {"max_grad_norms": {"mean": 0.02, "scale": 0.005}},
    "a norm of one group": {"max_grad_norm": 0.03, "max_grad_norms": {"scale": 0.005}},
    "OpenVLA-OFT": {
        "loss_average": "rollout",
        "micro_batch_decisions": 1,
        "learning_rates": {"mean": 3e-2, "scale": 3e-3},
        "max_grad_norms": {"mean": 0.02, "scale": 0.02},
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_an_update_equals_the_numpy_oracle(name: str) -> None:
    common = PPO(
        num_iterations=4, minibatch_rollouts=6, learning_rate=1e-2, clip_low=0.1, clip_high=0.3, weight_decay=0.1
    )
    ppo, policy = replace(common, **SETTINGS[name]), TinyChunkPolicy("gaussian")
    groups = with_gaps(make_groups(policy))
    expected = oracle(policy, groups, ppo)
    learner = learner_of(policy, ppo, GROUPS)
    for group in groups:
        learner.receive(group)
    report = learner.update([group.index for group in groups])
    assert (report.num_optimizer_steps, report.error) == (16, None)
    target = TinyChunkPolicy("gaussian")
    apply(learner.weights(), target)
    for parameter, value in expected.items():
        np.testing.assert_allclose(target.state_dict()[parameter].numpy(), value, atol=2e-5, err_msg=parameter)
    if name != "defaults":
        plain = oracle(TinyChunkPolicy("gaussian"), groups, common)
        distance = max(abs(value - plain[parameter]).max() for parameter, value in expected.items())
        matters = SETTINGS[name].keys() - {"micro_batch_decisions", "parallel_passes"}
        assert (distance > 1e-3) == bool(matters), "the setting must matter in this example"


BUILDERS = {
    "tokens": tiny_quest,
    "gaussian": lambda: TinyChunkPolicy("gaussian"),
    "laplace": lambda: TinyChunkPolicy("laplace"),
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", BUILDERS)
def test_the_first_minibatch_of_an_update_shows_whether_acting_and_learning_agree(kind: str, recompute: bool) -> None:
    ppo = PPO(num_iterations=3, minibatch_rollouts=8, learning_rate=3e-2, recompute_log_probs=recompute)
    groups = make_groups(BUILDERS[kind]())
    shifted = [
        replace(
            group,
            rollouts=tuple(replace(rollout, log_probs_TU=rollout.log_probs_TU - 0.1) for rollout in group.rollouts),
        )
        for group in groups
    ]
    reports, weights = [], []
    for received in (groups, shifted):
        learner = learner_of(BUILDERS[kind](), ppo)
        for group in received:
            learner.receive(group)
        reports.append(learner.update([group.index for group in received]))
        weights.append(learner.weights().buffer.view(np.float32))
    agreeing, differing = reports
    assert agreeing.first_mean_ratio == pytest.approx(1.0, abs=1e-5)
    assert agreeing.first_approx_kl == pytest.approx(0.0, abs=1e-5)
    assert differing.first_mean_ratio == pytest.approx(np.exp(0.1), abs=1e-4)
    assert differing.first_approx_kl == pytest.approx(np.exp(0.1) - 1.1, abs=1e-4)
    assert abs(agreeing.mean_ratio - 1) > 1e-4, "the mean over all steps hides it"
    if recompute:
        np.testing.assert_array_equal(weights[0], weights[1], err_msg="what the actors recorded must not matter")
        assert differing.mean_ratio == agreeing.mean_ratio
    else:
        assert abs(weights[0] - weights[1]).max() > 1e-3


def test_a_parameter_group_without_a_parameter_is_refused() -> None:
    ppo = PPO(learning_rates={"adapter": 1e-4})
    with pytest.raises(ValueError, match=r"parameter group adapter: no trainable parameter begins with 'lora\.'"):
        learner_of(TinyChunkPolicy("gaussian"), ppo, {"adapter": "lora."})
