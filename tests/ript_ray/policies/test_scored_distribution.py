"""The distribution that scores a sampled token: over all tokens, or over the candidates that it was drawn from."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from ript_ray.config.rl import PPO
from ript_ray.policies.base import Decisions
from ript_ray.policies.quest.config import QuestConfig
from ript_ray.policies.quest.policy import QuestPolicy
from ript_ray.rl.learner import Learner
from ript_ray.rl.weights import apply
from ript_ray.types import Group, Rollout, Version
from tests.conftest import TINY_QUEST

TWO_TOKENS = replace(TINY_QUEST, chunk_length=8)
"""9 tokens to choose from, 2 per decision."""

VARIANTS = [
    replace(TWO_TOKENS, scored_against=scored_against, top_k=top_k, temperature=temperature)
    for scored_against in ("all", "candidates")
    for top_k in (0, 1, 4, 20)
    for temperature in (1.0, 0.5)
]


def identify(settings: QuestConfig) -> str:
    return f"{settings.scored_against}, top {settings.top_k}, temperature {settings.temperature}"


def policy_of(settings: QuestConfig) -> QuestPolicy:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return QuestPolicy(settings, action_dim=1, state_dims={"state": 2})


def decide(policy: QuestPolicy, count: int, seed: int = 0) -> Decisions:
    states = np.random.default_rng(seed).normal(size=(count, 2)).astype(np.float32)
    rngs = [np.random.default_rng((seed, row)) for row in range(count)]
    return policy.act({"state": states}, ["go left"] * count, rngs)


def tensors(decisions: Decisions) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in decisions.record.items()}


@pytest.mark.parametrize("settings", VARIANTS, ids=identify)
def test_ratios_are_one_at_the_weights_that_acted(settings: QuestConfig) -> None:
    policy = policy_of(settings)
    decisions = decide(policy, 50)
    ratios = (policy.log_probs(tensors(decisions)) - torch.from_numpy(decisions.log_probs_BU)).exp()
    torch.testing.assert_close(ratios, torch.ones(50, 2), rtol=0, atol=2e-6)


@pytest.mark.parametrize("settings", VARIANTS, ids=identify)
def test_probabilities_and_gradients_are_those_of_the_formula(settings: QuestConfig) -> None:
    policy = policy_of(settings)
    decisions = decide(policy, 10)
    record = tensors(decisions)
    log_probs, bias = policy.log_probs(record), policy.policy_prior.head.bias
    logits = policy.policy_prior.logits(record["context"], record["tokens"].long())
    x, temperature = logits.detach().double().numpy(), settings.temperature
    for row, token in np.ndindex(10, 2):
        chosen, among, divisor = int(record["tokens"][row, token]), np.arange(9), 1.0
        if settings.scored_against == "candidates":
            divisor = temperature
            among = np.argsort(-x[row, token])[: settings.top_k or None]
        weights = np.zeros(9)
        weights[among] = np.exp(x[row, token, among] / divisor)
        weights /= weights.sum()
        assert decisions.log_probs_BU[row, token] == pytest.approx(np.log(weights[chosen]), abs=1e-5)
        expected = (np.eye(9)[chosen] - weights) / divisor
        (gradient,) = torch.autograd.grad(log_probs[row, token], bias, retain_graph=True)  # that of the logits
        np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize(("top_k", "temperature"), [(0, 0.5), (4, 1.0), (4, 0.5)])
def test_against_candidates_a_tokens_probability_is_how_often_it_is_drawn(top_k: int, temperature: float) -> None:
    policy = policy_of(replace(TWO_TOKENS, scored_against="candidates", top_k=top_k, temperature=temperature))
    states = np.zeros((4000, 2), np.float32)
    decisions = policy.act({"state": states}, ["go left"] * 4000, [np.random.default_rng(row) for row in range(4000)])
    first = decisions.record["tokens"][:, 0]
    probabilities = {token: np.exp(decisions.log_probs_BU[first == token, 0]).mean() for token in np.unique(first)}
    assert len(probabilities) == (top_k or 9)
    assert sum(probabilities.values()) == pytest.approx(1.0, abs=1e-5)
    for token, probability in probabilities.items():
        assert (first == token).mean() == pytest.approx(probability, abs=4 * 0.5 / np.sqrt(4000))


def test_candidates_are_recorded_only_where_they_count() -> None:
    records = {
        (settings.scored_against, settings.top_k): decide(policy_of(settings), 3).record for settings in VARIANTS
    }
    for (scored_against, top_k), record in records.items():
        assert ("candidates" in record) == (scored_against == "candidates" and top_k > 0)
    candidates = records["candidates", 4]["candidates"]
    assert candidates.shape == (3, 2, 4)
    assert candidates.dtype == np.int32
    assert records["candidates", 20]["candidates"].shape == (3, 2, 9), "there are no more than 9 tokens"


def group_of(index: int, policy: QuestPolicy, solves: Callable[[np.ndarray], bool]) -> Group:
    """Eight rollouts of one decision each."""
    decisions = decide(policy, 8, seed=index)
    return Group(
        index,
        Version(0),
        tuple(
            Rollout(
                success=solves(decisions.record["tokens"][row]),
                num_steps=1,
                record={name: array[row : row + 1] for name, array in decisions.record.items()},
                log_probs_TU=decisions.log_probs_BU[row : row + 1],
                valid_TU=decisions.valid_BU[row : row + 1],
            )
            for row in range(8)
        ),
    )


@pytest.mark.parametrize("scored_against", ["all", "candidates"])
def test_a_learner_solves_more_with_either_distribution(scored_against: Literal["all", "candidates"]) -> None:
    settings = replace(TWO_TOKENS, scored_against=scored_against, top_k=4, temperature=0.8)
    actor, threads = policy_of(settings), torch.get_num_threads()
    ppo = PPO(num_iterations=2, minibatch_rollouts=32, learning_rate=3e-3)
    learner = Learner(lambda: policy_of(settings), ppo, seed=0, num_threads=threads)
    rates = []
    for update in range(12):
        groups = [group_of(8 * update + place, actor, lambda tokens: bool(tokens[0] % 2)) for place in range(8)]
        rates.append(np.mean([rollout.success for group in groups for rollout in group.rollouts]))
        for group in groups:
            learner.receive(group)
        assert learner.update([group.index for group in groups]).error is None
        apply(learner.weights(), actor)
    assert rates[0] < 0.8
    assert rates[-1] > 0.95
