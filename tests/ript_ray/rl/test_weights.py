from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ript_ray.errors import WeightsError
from ript_ray.rl.learner import Learner
from ript_ray.rl.weights import apply, snapshot
from ript_ray.storage.hashed_dir import load_arrays, save_arrays
from ript_ray.types import Version
from tests.conftest import line_parts, tiny_quest
from tests.fakes import TinyChunkPolicy
from tests.ript_ray.rl.test_learner_oracle import make_groups


def test_weights_are_transferred_bit_for_bit_and_frozen_parameters_are_untouched() -> None:
    source, target = tiny_quest(), tiny_quest()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter))
    weights = snapshot(source, Version(4))
    frozen = target.obs_proj.weight.clone()
    assert apply(weights, target) == weights.checksum
    assert snapshot(target, Version(4)).checksum == weights.checksum
    assert torch.equal(target.obs_proj.weight, frozen)
    assert weights.buffer.nbytes == sum(4 * parameter.numel() for parameter in source.trainable().values())


def test_receivers_copy_and_never_write_to_the_shared_buffer() -> None:
    source, target = TinyChunkPolicy("laplace"), TinyChunkPolicy("laplace")
    weights = snapshot(source, Version(1))
    apply(weights, target)
    with torch.no_grad():
        target.log_scale.fill_(7.0)
    assert apply(weights, TinyChunkPolicy("laplace")) == weights.checksum


def test_parameters_of_other_dtypes_keep_their_bits() -> None:
    class MixedPolicy(TinyChunkPolicy):
        def __init__(self) -> None:
            super().__init__("laplace")
            self.log_scale = nn.Parameter(self.log_scale.to(torch.bfloat16))

    source, target = MixedPolicy(), MixedPolicy()
    with torch.no_grad():
        source.log_scale.copy_(torch.tensor([0.1, -3.0, 1e-8]))
    apply(snapshot(source, Version(0)), target)
    assert torch.equal(source.log_scale, target.log_scale)


class HalfPolicy(TinyChunkPolicy):
    def __init__(self) -> None:
        super().__init__("laplace")
        self.bfloat16()

    def log_probs(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return super().log_probs({name: tensor.bfloat16() for name, tensor in record.items()}).float()


def test_weights_and_moments_in_bfloat16_are_resumed_from_files_to_the_same_bits(tmp_path: Path) -> None:
    ppo = line_parts(HalfPolicy).ppo
    groups = make_groups(TinyChunkPolicy("laplace"), 2)
    learner, resumed = (Learner(HalfPolicy, ppo, seed=5, num_threads=1) for _ in range(2))
    for each in (learner, resumed):
        for group in groups:
            each.receive(group)
    learner.update([0])
    policy = HalfPolicy()
    apply(learner.weights(), policy)
    for name, arrays in {"policy": policy.state_arrays(), "learner": learner.state()}.items():
        save_arrays(arrays, tmp_path / name)
    policy.load_state_arrays(load_arrays(tmp_path / "policy"))
    state = load_arrays(tmp_path / "learner")
    assert state["exp_avg/mean.weight"].dtype.name == "bfloat16"
    resumed.restore(Version(1), state, snapshot(policy, Version(1)))
    for each in (learner, resumed):
        assert each.update([1]).error is None
    assert learner.checksum() == resumed.checksum()


def test_a_flipped_bit_is_detected() -> None:
    weights = snapshot(tiny_quest(), Version(2))
    damaged = weights.buffer.copy()
    damaged[100] ^= 1
    with pytest.raises(WeightsError, match=r"version 2 of the weights is corrupt: checksum \w{64}, not \w{64}"):
        apply(replace(weights, buffer=damaged), tiny_quest())


def test_weights_of_another_policy_are_refused_by_name() -> None:
    target = TinyChunkPolicy("gaussian")
    before = target.mean.weight.clone()
    with pytest.raises(
        WeightsError,
        match=r"version 0 of the weights does not fit the policy:(.|\n)*unknown policy_prior\.tok_emb\.weight",
    ):
        apply(snapshot(tiny_quest(), Version(0)), target)
    assert torch.equal(before, target.mean.weight)


def test_a_snapshot_does_not_change_when_the_policy_does() -> None:
    policy = tiny_quest()
    weights = snapshot(policy, Version(0))
    copy = weights.buffer.copy()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(weights.buffer, copy)
