"""The supervised stages: what each trains in a new, a pretrained and a fine-tuned model, and that it learns."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ript_envs.conformance.checklist import CheckResult
from ript_envs.contract import EnvironmentSpec
from ript_envs.libero.benchmark import Libero
from ript_ray.config.experiment import Experiment
from ript_ray.errors import CheckpointError, ConfigError
from ript_ray.policies.conformance.policy import check_policy
from ript_ray.policies.openvla_oft.architecture import NewModel
from ript_ray.policies.openvla_oft.config import OpenVLAOFTConfig, OpenVLAOFTSFT
from ript_ray.policies.openvla_oft.export import SCALE_HEAD_FILE
from ript_ray.policies.openvla_oft.policy import OpenVLAOFTPolicy
from ript_ray.policies.supervised import Augmentation, SupervisedStage, SupervisedTask, Windows
from ript_ray.runs.model_dir import initial_policy
from ript_ray.sft.trainer import SupervisedTrainer
from ript_ray.types import Arrays
from tests.oft_fixture import CHECKPOINT
from tests.ript_ray.policies.openvla_oft.test_policy import TINY

SPEC = EnvironmentSpec("robot", action_dim=4, state_dims={"state": 3}, image_shapes={"front": (32, 32, 3)})
SIZES = NewModel(image_size=28, vision_width=16, vision_layers=1, vision_heads=2, language_width=16, language_layers=1)
NEW = OpenVLAOFTConfig(
    base="new", new=SIZES, cameras=("front",), sensors=("state",), chunk_length=2, precision="float32", lora_rank=4
)
SFT = OpenVLAOFTSFT(
    regression=SupervisedStage(num_steps=250, batch_size=16, learning_rate=5e-3, max_grad_norm=1.0),
    scale=SupervisedStage(num_steps=60, batch_size=16, learning_rate=3e-3),
    augmentation=Augmentation(color=0.0, shift=2),
)
INSTRUCTIONS = ("open the drawer", "close the drawer")


def windows(num: int = 64) -> Windows:
    """Actions in [0, 0.5] that the robot's state and the brightness of the image give; the gripper, the instruction."""
    generator = np.random.default_rng(0)
    state = generator.uniform(2, 3, (num, 3)).astype(np.float32)
    brightness = generator.integers(0, 256, num)
    instructions = tuple(INSTRUCTIONS[row % 2] for row in range(num))
    action = np.column_stack([state[:, :2] - 2, brightness / 255, np.arange(num) % 2 * 4 - 2]) / 2
    images = np.broadcast_to(brightness.astype(np.uint8)[:, None, None, None], (num, 32, 32, 3))
    chunks = np.repeat(action[:, None], 2, axis=1).astype(np.float32)
    return Windows(instructions, {"state": state, "front": np.ascontiguousarray(images)}, chunks)


def build(config: OpenVLAOFTConfig, spec: EnvironmentSpec = SPEC) -> OpenVLAOFTPolicy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return config.build(spec)


def run(task: SupervisedTask, policy: OpenVLAOFTPolicy, data: Windows) -> tuple[float, float]:
    """Train a stage and return its error before and after."""
    task.prepare(policy, data)
    before = task.error(policy, data)
    with torch.random.fork_rng():
        loss_fn, reader = task.loss_fn(policy, data), task.reader(policy, data)
        trainer = SupervisedTrainer(task.parameters(policy), loss_fn, reader, settings=task.settings, seed=0)
        for _ in trainer.steps():
            pass
    return before, task.error(policy, data)


def changed(before: Arrays, after: Mapping[str, NDArray[np.generic]]) -> set[str]:
    return {name for name in before if not np.array_equal(before[name], after[name])}


@pytest.mark.parametrize("result", check_policy(NEW, SPEC, INSTRUCTIONS), ids=lambda result: result.name)
def test_a_new_model_conforms_to_the_contract(result: CheckResult) -> None:
    assert result.error is None, result.error


def test_a_new_model_learns_actions_then_their_scale_and_keeps_both() -> None:
    policy, data = build(NEW), windows()
    start = policy.state_arrays()
    regression, scale = SFT.tasks()
    before, after = run(regression, policy, data)
    assert after < before / 3
    regressed = policy.state_arrays()
    trained = changed(start, regressed)
    for part in ("vla.vision_backbone.", "vla.projector.", "vla.language_model.", "proprio_projector.", "action_head."):
        assert any(name.startswith(part) for name in trained)
    assert not any(".lora_" in name or name.startswith("scale_head.") for name in trained)

    before, after = run(scale, policy, data)
    assert after < before - 0.2
    scaled = policy.state_arrays()
    assert changed(regressed, scaled) == {name for name in start if name.startswith("scale_head.")}

    again = build(replace(NEW))
    again.load_state_arrays(scaled)
    observations = {name: np.asarray(values)[:4] for name, values in data.observations.items()}
    found = again.act_deterministically(observations, data.instructions[:4])
    np.testing.assert_array_equal(found, policy.act_deterministically(observations, data.instructions[:4]))
    np.testing.assert_allclose(found[:, :, :3], data.chunks_WCA[:4, :, :3], rtol=0, atol=0.15)
    np.testing.assert_array_equal(found[:, :, 3], data.chunks_WCA[:4, :, 3])
    assert all(parameter.requires_grad for parameter in again.trainable().values())


def test_a_gaussian_policy_is_trained_by_the_mean_squared_error() -> None:
    policy, data, rows = build(replace(NEW, distribution="gaussian")), windows(), torch.arange(8)
    regression, scale = replace(SFT, augmentation=Augmentation(color=0.0, shift=0)).tasks()
    regression.prepare(policy, data)
    loss = regression.loss_fn(policy, data)
    normalized = policy.inputs.statistics.normalize_actions(data.chunks_WCA[:8])
    observations = {name: np.asarray(values)[:8] for name, values in data.observations.items()}
    record = policy.inputs.record(observations, data.instructions[:8])
    mean, log_scale = policy.mean_and_log_scale({name: torch.from_numpy(array) for name, array in record.items()})
    deviations = mean.detach().numpy() - normalized
    assert loss(regression.reader(policy, data).read(rows), np.random.default_rng(0)).item() == pytest.approx(
        (deviations**2).mean(), rel=1e-5
    )
    scales = np.exp(log_scale.detach().numpy().astype(np.float64))
    surprise = (deviations / scales) ** 2 / 2 + np.log(scales * np.sqrt(2 * np.pi))
    batch = scale.reader(policy, data).read(rows)
    found = scale.loss_fn(policy, data)(batch, np.random.default_rng(0)).item()
    assert found == pytest.approx(surprise.mean(), rel=1e-4)


def test_a_pretrained_model_is_adapted_everywhere_with_new_heads(tmp_path: Path) -> None:
    for path in CHECKPOINT.iterdir():
        if path.suffix != ".pt" and path.name != "dataset_statistics.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    config = replace(NEW, base="pretrained", checkpoint=tmp_path)
    policy, data = build(config), windows(16)
    start = policy.state_arrays()
    config.check_arrays(SPEC, start)
    regression, _ = replace(SFT, regression=SupervisedStage(num_steps=4, batch_size=8, learning_rate=1e-3)).tasks()
    before, after = run(regression, policy, data)
    assert after < before
    trained = changed(start, policy.state_arrays())
    for part in ("vla.vision_backbone.", "vla.projector.", "vla.language_model.model.layers.", "proprio_projector."):
        assert any(name.startswith(part) for name in trained)
    assert all(".lora_" in name or not name.startswith("vla.") for name in trained)


def test_the_scale_head_of_a_fine_tuned_model_is_saved_as_the_published_ones(tmp_path: Path) -> None:
    spec = replace(SPEC, action_dim=7, state_dims={"state": 8}, image_shapes=dict.fromkeys(("one", "two"), (32, 32, 3)))
    config = replace(TINY, cameras=("one", "two"), sensors=("state",), scale_head=None)
    policy = build(config, spec)
    trained = {name for name in policy.state_arrays() if not name.startswith("scale_head.")}
    assert policy.regressed().keys() == policy.trainable().keys() == trained

    generator = np.random.default_rng(0)
    images = {name: generator.integers(0, 256, (8, 32, 32, 3), np.uint8) for name in ("one", "two")}
    observations = {**images, "state": generator.normal(size=(8, 8)).astype(np.float32)}
    data = Windows(INSTRUCTIONS * 4, observations, generator.uniform(-1, 1, (8, 8, 7)).astype(np.float32))
    units = policy.inputs.statistics
    _, scale = replace(SFT, scale=SupervisedStage(num_steps=5, batch_size=4, learning_rate=1e-3)).tasks()
    before, after = run(scale, policy, data)
    assert after < before
    assert policy.inputs.statistics is units

    policy.save_adaptor(tmp_path / "out")
    again = build(replace(config, scale_head=tmp_path / "out" / SCALE_HEAD_FILE), spec)
    for name, parameter in policy.scale_head().items():
        torch.testing.assert_close(again.scale_head()[name], parameter, rtol=0, atol=0)


def test_a_policy_is_post_trained_only_with_a_trained_scale_head() -> None:
    tasks, sft = ("open_the_middle_drawer_of_the_cabinet",), OpenVLAOFTSFT()
    experiment = Experiment("vla", tasks, ("ript",), benchmark=Libero(suite="libero_goal"), policy=TINY, sft=sft)
    assert initial_policy(experiment).experiment is experiment
    untrained = replace(TINY, scale_head=None)
    with pytest.raises(ConfigError, match="start-from must name what the stage ript starts from"):
        initial_policy(replace(experiment, policy=untrained))
    initial_policy(replace(experiment, policy=untrained, stages=("scale", "ript")))
    with pytest.raises(ConfigError, match="start-from must name what the stage scale starts from"):
        initial_policy(replace(experiment, policy=replace(untrained, base="pretrained"), stages=("scale", "ript")))


def test_what_is_saved_of_another_kind_of_policy_is_refused() -> None:
    arrays = build(NEW).state_arrays()
    NEW.check_arrays(SPEC, arrays)
    with pytest.raises(CheckpointError, match=r"statistics\.action\.low has shape"):
        NEW.check_arrays(SPEC, arrays | {"statistics.action.low": np.zeros(3)})
    with pytest.raises(CheckpointError, match="the weights do not fit the policy"):
        replace(NEW, new=replace(SIZES, language_width=32)).check_arrays(SPEC, arrays)
    with pytest.raises(ConfigError, match=r"policy\.base is new, a model of random weights: leave out policy\.scale"):
        replace(NEW, scale_head=Path("head.pth"))
    with pytest.raises(ConfigError, match=r"policy\.new\.image-size must be a multiple of 14, from 14 to 448, not 50"):
        NewModel(image_size=50)
    with pytest.raises(ConfigError, match=r"policy\.new\.language-width must be a multiple of 8, not 20"):
        NewModel(language_width=20)
