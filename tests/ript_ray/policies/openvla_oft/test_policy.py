"""The policy conforms to the contract, equals the authors' from images to actions, and trains what they train."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ript_envs.conformance.checklist import CheckResult
from ript_envs.contract import EnvironmentSpec
from ript_envs.libero.benchmark import Libero
from ript_ray.config.experiment import Experiment
from ript_ray.errors import ConfigError
from ript_ray.policies.conformance.policy import check_policy
from ript_ray.policies.conformance.probe import expect_same, perturb
from ript_ray.policies.openvla_oft.config import OpenVLAOFTConfig, OpenVLAOFTSFT, Precision
from ript_ray.types import Arrays
from tests.oft_fixture import CHECKPOINT, arrays
from tests.openvla_oft_fixture import ADAPTOR, SCALE_HEAD, expected, meta

SPEC = EnvironmentSpec(
    "LIBERO",
    action_dim=7,
    state_dims={"joint_states": 7, "ee_pos": 3, "ee_ori": 3, "gripper_states": 2},
    image_shapes=dict.fromkeys(("agentview_rgb", "eye_in_hand_rgb"), (256, 256, 3)),
)
TINY = OpenVLAOFTConfig(checkpoint=CHECKPOINT, scale_head=SCALE_HEAD, suite="libero_goal", precision="float32")
INSTRUCTIONS = (meta()["task"], meta()["task2"])


@pytest.mark.parametrize("result", check_policy(TINY, SPEC, INSTRUCTIONS), ids=lambda result: result.name)
def test_the_policy_conforms_to_the_contract(result: CheckResult) -> None:
    assert result.error is None, result.error


def observations() -> Arrays:
    """The fixture's first two observations, as LIBERO gives them."""
    images = arrays("images.npz")
    cameras = {"agentview_rgb": images["raw_agentview"], "eye_in_hand_rgb": images["raw_wrist"]}
    proprio = expected()["proprio_raw"][:2].astype(np.float32)
    return {**cameras, "ee_pos": proprio[:, :3], "ee_ori": proprio[:, 3:6], "gripper_states": proprio[:, 6:]}


@pytest.mark.parametrize(("adaptor", "case"), [(None, "base"), (ADAPTOR, "lora_all")])
def test_simulator_images_give_the_published_actions(adaptor: Path | None, case: str) -> None:
    policy = replace(TINY, adaptor=adaptor).build(SPEC)
    actions = policy.act_deterministically(observations(), [meta()["task"]] * 2)
    np.testing.assert_allclose(actions, expected()[f"{case}/split/env_actions"][:2].clip(-1, 1), rtol=0, atol=1e-4)
    record = policy.act(observations(), [meta()["task"]] * 2, [np.random.default_rng(row) for row in range(2)]).record
    samples = {**record, "chunk": expected()[f"{case}/sample/normalized"][:2]}
    log_probs = policy.log_probs({name: torch.from_numpy(array) for name, array in samples.items()})
    theirs = expected()[f"{case}/sample/log_prob_per_step"][:2]
    np.testing.assert_allclose(log_probs.detach(), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_encoded_images_give_the_bits_of_the_images_and_the_log_probabilities_of_acting(precision: Precision) -> None:
    policy = replace(TINY, adaptor=ADAPTOR, precision=precision).build(SPEC)
    decisions = policy.act(observations(), INSTRUCTIONS, [np.random.default_rng(row) for row in range(2)])
    record = {name: torch.from_numpy(array) for name, array in decisions.record.items()}
    log_probs = policy.log_probs(record)
    assert torch.equal(policy.log_probs({**record, **policy.encode(record)}), log_probs)
    ratios = (log_probs - torch.from_numpy(decisions.log_probs_BU)).exp()
    np.testing.assert_allclose(ratios.detach(), 1.0, rtol=0, atol=1e-5)


def test_in_bfloat16_what_is_trained_stays_float32_and_gets_the_same_gradients() -> None:
    norms = []
    for precision in ("float32", "bfloat16"):
        policy = replace(TINY, adaptor=ADAPTOR, precision=precision).build(SPEC)
        assert {value.dtype for value in policy.trainable().values()} == {torch.float32}
        decisions = policy.act(observations(), INSTRUCTIONS, [np.random.default_rng(row) for row in range(2)])
        policy.log_probs({name: torch.from_numpy(array) for name, array in decisions.record.items()}).sum().backward()
        gradients = [value.grad for value in policy.trainable().values()]
        assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients)
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm()))
    assert norms[1] == pytest.approx(norms[0], rel=0.2)


def test_only_the_adapter_of_the_language_layers_and_the_heads_are_in_a_checkpoint() -> None:
    policy = replace(TINY, adaptor=ADAPTOR).build(SPEC)
    lora = {name.removeprefix("base_model.model.") for name in expected()["ppo/lora_grad_names"]}
    head = {str(name) for name in expected()["ppo/head_grad_names"]}
    trained = {name.removeprefix("vla.") for name in policy.trainable()}
    assert trained == lora | {f"action_head.{name.removeprefix('action_head.')}" for name in head}
    others = policy.state_arrays().keys() - policy.trainable().keys()
    assert others
    assert all(name.startswith("scale_head.") for name in others)


def test_rollouts_sample_around_the_mean_with_the_scale_of_the_settings() -> None:
    for sampled_scale in ("as-scored", "unclamped"):
        chunks = []
        for factor in (1.0, 5.0):
            policy = replace(TINY, sampled_scale=sampled_scale, scale_factor=factor).build(SPEC)
            generators = [np.random.default_rng(row) for row in range(2)]
            record = policy.act(observations(), INSTRUCTIONS[:1] * 2, generators).record
            chunks.append(record["chunk"].astype(np.float64))
        near, far = chunks
        assert np.abs(far - near).min() > 0
        np.testing.assert_allclose((5 * near - far) / 4, expected()["base/split/mu"][:2], rtol=0, atol=1e-4)
        uniforms = np.stack([np.random.default_rng(row).uniform(1e-6, 1 - 1e-6, (8, 7)) for row in range(2)])
        log_scale = expected()["base/split/log_b"][:2]
        scale = np.exp(log_scale.clip(-2, 0.5) if sampled_scale == "as-scored" else log_scale)
        quantiles = -np.sign(uniforms - 0.5) * scale * np.log(1 - 2 * np.abs(uniforms - 0.5))
        np.testing.assert_allclose((far - near) / 4, quantiles, rtol=0, atol=1e-4)


def test_the_base_model_is_known_by_its_content_not_by_its_place(tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in CHECKPOINT.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    assert replace(TINY, checkpoint=moved).base_sha256() == TINY.base_sha256()
    (moved / "README.md").write_text("of no effect")
    assert replace(TINY, checkpoint=moved).base_sha256() == TINY.base_sha256()
    (moved / "dataset_statistics.json").write_text("{}")
    assert replace(TINY, checkpoint=moved).base_sha256() != TINY.base_sha256()
    assert replace(TINY, adaptor=ADAPTOR).base_sha256() != TINY.base_sha256()


def test_a_policy_continues_from_the_adaptor_that_another_one_saved(tmp_path: Path) -> None:
    trained = replace(TINY, adaptor=ADAPTOR).build(SPEC)
    perturb(trained)
    trained.save_adaptor(tmp_path / "adaptor")
    again = replace(TINY, adaptor=tmp_path / "adaptor").build(SPEC)
    expect_same(trained.state_arrays(), again.state_arrays(), "saved and loaded")
    before, after = (policy.act_deterministically(observations(), INSTRUCTIONS) for policy in (trained, again))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5)


def test_an_experiment_on_another_suite_than_that_of_the_statistics_is_refused() -> None:
    def experiment(benchmark: Libero, policy: OpenVLAOFTConfig) -> Experiment:
        tasks = ("open_the_middle_drawer_of_the_cabinet",)
        return Experiment("vla", tasks, stages=("ript",), sft=OpenVLAOFTSFT(), benchmark=benchmark, policy=policy)

    experiment(Libero(suite="libero_goal", perturbation="object"), TINY)
    with pytest.raises(ConfigError, match=r"policy\.suite is libero_spatial, but the benchmark is libero_goal"):
        experiment(Libero(suite="libero_goal"), OpenVLAOFTConfig())


@pytest.mark.parametrize(
    ("config", "spec", "message"),
    [
        (OpenVLAOFTConfig(), SPEC, "policy.checkpoint must name a folder"),
        (replace(TINY, cameras=("agentview_rgb",)), SPEC, "needs 2 cameras; for LIBERO there are 1"),
        (TINY, replace(SPEC, action_dim=4), "needs 7 entries of an action; for LIBERO there are 4"),
        (replace(TINY, suite="libero_90"), SPEC, "has no statistics of libero_90, only of libero_goal_no_noops"),
    ],
)
def test_what_does_not_fit_the_checkpoint_is_refused(
    config: OpenVLAOFTConfig, spec: EnvironmentSpec, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config.build(spec)
