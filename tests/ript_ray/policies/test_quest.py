import math
from typing import Any

import numpy as np
import pytest
import torch

from ript_ray.errors import CheckpointError, ConfigError
from ript_ray.policies.quest.config import QuestConfig
from ript_ray.policies.quest.fsq import FiniteScalarQuantizer
from ript_ray.policies.quest.policy import QuestPolicy
from ript_ray.policies.quest.skill_vae import SkillVAE
from ript_ray.policies.text import hashed_text
from ript_ray.types import Arrays
from tests.conftest import TINY_QUEST, tiny_quest


def generators(count: int, first: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng(first + row) for row in range(count)]


def sample_without_cache(prior, context, rngs, top_k: int, temperature: float) -> torch.Tensor:
    """Re-runs the whole sequence for every token."""
    uniforms = np.stack([rng.random(prior.num_tokens) for rng in rngs])
    tokens = torch.zeros(len(context), prior.num_tokens, dtype=torch.long)
    for position in range(prior.num_tokens):
        logits = prior.logits(context, tokens)[:, position] / temperature
        for row in range(len(context)):
            order = logits[row].argsort(descending=True)[: top_k or None]
            order = order if top_k else torch.arange(logits.shape[-1])
            cumulative = logits[row, order].double().softmax(-1).cumsum(-1)
            tokens[row, position] = order[int((cumulative <= uniforms[row, position] * cumulative[-1]).sum())]
    return tokens


@pytest.mark.parametrize(("top_k", "temperature"), [(0, 1.0), (3, 1.0), (0, 0.5)])
def test_cached_sampling_equals_running_the_whole_sequence_again(top_k: int, temperature: float) -> None:
    policy = QuestPolicy(
        QuestConfig(chunk_length=32, skill_width=16, prior_width=32, prior_layers=3, prior_heads=4),
        action_dim=4,
        state_dims={"state": 5},
    )
    context = torch.randn(6, 2, 32)
    with torch.no_grad():
        sampled = policy.policy_prior.sample(context, generators(6), top_k=top_k, temperature=temperature)
        expected = sample_without_cache(policy.policy_prior, context, generators(6), top_k, temperature)
        assert torch.equal(sampled.tokens_BU, expected)
        torch.testing.assert_close(sampled.logits_BUV, policy.policy_prior.logits(context, sampled.tokens_BU))


def test_samples_follow_the_priors_distribution() -> None:
    policy = tiny_quest()
    context = torch.randn(1, 2, 16).expand(4000, -1, -1)
    with torch.no_grad():
        tokens = policy.policy_prior.sample(context, generators(4000), top_k=0, temperature=1.0).tokens_BU
        probabilities = policy.policy_prior.logits(context[:1], tokens[:1])[0, 0].softmax(-1).numpy()
    frequencies = np.bincount(tokens[:, 0], minlength=9) / 4000
    np.testing.assert_allclose(frequencies, probabilities, atol=4 * 0.5 / math.sqrt(4000))


def test_a_row_draws_from_its_own_generator_alone() -> None:
    policy = tiny_quest()
    observations: Arrays = {"state": np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)}
    both = policy.act(observations, ["go left"] * 3, generators(3))
    for row in range(3):
        alone = policy.act({"state": observations["state"][row : row + 1]}, ["go left"], generators(1, first=row))
        np.testing.assert_array_equal(alone.record["tokens"][0], both.record["tokens"][row])


def test_a_decision_is_scored_from_its_record_with_gradients_to_the_prior_alone() -> None:
    policy = tiny_quest()
    observations: Arrays = {"state": np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)}
    decisions = policy.act(observations, ["go left", "go right"] * 2, generators(4))
    assert decisions.actions_BCA.shape == (4, TINY_QUEST.num_executed, 1)
    assert np.abs(decisions.actions_BCA).max() <= 1
    policy.log_probs({name: torch.from_numpy(array) for name, array in decisions.record.items()}).sum().backward()
    with_gradient = {name for name, value in policy.named_parameters() if value.grad is not None}
    assert with_gradient == set(policy.trainable())
    assert all(name.startswith("policy_prior.") for name in with_gradient)


def test_the_instruction_changes_what_the_policy_does() -> None:
    policy = tiny_quest()
    state: Arrays = {"state": np.zeros((64, 2), np.float32)}
    left, right = (policy.act(state, [text] * 64, generators(64)) for text in ("go left", "go right"))
    assert (left.record["tokens"] != right.record["tokens"]).any()
    assert not np.array_equal(left.log_probs_BU, right.log_probs_BU)


def quantize_oracle(values: np.ndarray, levels: tuple[int, ...]) -> np.ndarray:
    """Nearest level of each bounded coordinate, by search over all levels."""
    codes = []
    for row in values:
        code, basis = 0, 1
        for value, level in zip(row, levels, strict=True):
            half = (level - 1) * 1.001 / 2
            offset = 0.5 if level % 2 == 0 else 0.0
            bounded = np.tanh(value + np.arctanh(offset / half)) * half - offset
            grid = np.arange(level) - level // 2
            code += int(np.abs(grid - bounded).argmin()) * basis
            basis *= level
        codes.append(code)
    return np.array(codes)


def test_the_quantizer_picks_the_nearest_level_of_each_coordinate() -> None:
    levels = (8, 5, 5, 5)
    quantizer = FiniteScalarQuantizer(4, levels)
    with torch.no_grad():
        quantizer.project_in.weight.copy_(torch.eye(4))
        quantizer.project_in.bias.zero_()
    values = np.random.default_rng(0).normal(scale=1.5, size=(300, 4))
    quantized, codes = quantizer(torch.tensor(values, dtype=torch.float32))
    np.testing.assert_array_equal(codes, quantize_oracle(values.astype(np.float32).astype(np.float64), levels))
    torch.testing.assert_close(quantizer.embed(codes), quantized)
    assert quantizer.vocabulary == 1000


def test_the_autoencoder_trains_through_its_quantizer() -> None:
    vae = SkillVAE(action_dim=3, chunk_length=16, fsq_levels=(5, 5), width=16, num_layers=(1, 1), dropout=0.0)
    actions = torch.randn(2, 16, 3)
    vae(actions).abs().mean().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in vae.action_proj.parameters())
    tokens = vae.tokens(actions)
    assert tokens.shape == (2, 4)
    torch.testing.assert_close(vae.decode_tokens(tokens), vae(actions))


def test_the_prior_sees_no_later_token() -> None:
    prior = tiny_quest().policy_prior
    context = torch.randn(1, 2, 16)
    first, second = torch.tensor([[0]]), torch.tensor([[1]])
    torch.testing.assert_close(prior.logits(context, first)[:, 0], prior.logits(context, second)[:, 0])


def test_the_default_sizes_are_the_published_models() -> None:
    policy = QuestPolicy(QuestConfig(), action_dim=7, state_dims={"state": 3})
    assert sum(value.numel() for value in policy.trainable().values()) == 11_416_936
    assert sum(value.numel() for value in policy.autoencoder.parameters()) == 6_522_635
    assert policy.autoencoder.num_tokens == 8
    assert len(policy.policy_prior.state_dict()) == 78
    assert len(policy.autoencoder.state_dict()) == 118


def test_weights_that_do_not_fit_are_refused_with_all_differences_and_nothing_is_loaded() -> None:
    policy = tiny_quest()
    arrays = policy.state_arrays()
    before = policy.obs_proj.weight.clone()
    arrays["obs_proj.weight"] = np.zeros((3, 3), np.float32)
    arrays["surplus"] = arrays.pop("policy_prior.head.bias")
    with pytest.raises(CheckpointError) as caught:
        policy.load_state_arrays(arrays)
    for part in ("missing policy_prior.head.bias", "unknown surplus", "obs_proj.weight has shape (3, 3), not (16, 8)"):
        assert part in str(caught.value)
    assert torch.equal(policy.obs_proj.weight, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk_length": 6}, "policy.chunk-length must be a multiple of 4, from 4 to 1000, not 6"),
        ({"num_executed": 40}, "policy.num-executed must be from 1 to 32, not 40"),
        ({"fsq_levels": (8, 1)}, r"each at least 2, with a product of at most 1000000, not \(8, 1\)"),
        ({"prior_width": 100}, "multiple of 2 \\* prior-heads = 12, at most 65536, not 100"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1"),
    ],
)
def test_impossible_sizes_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuestConfig(**changes)


def test_hashed_instructions_are_deterministic_and_distinct() -> None:
    first, second = hashed_text("open the drawer", 64), hashed_text("close the drawer", 64)
    assert np.linalg.norm(first) == pytest.approx(1.0)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(np.flatnonzero(hashed_text("Open the drawer", 64)), np.flatnonzero(first))
    assert not hashed_text("", 8).any()
