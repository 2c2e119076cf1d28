"""What a QueST policy reads: images, raw or standardized sensors, instructions in three forms."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ript_ray.errors import CheckpointError, ConfigError
from ript_ray.policies.quest.config import QuestConfig, QuestSFT
from ript_ray.policies.quest.encoders import ImageEncoder, SpatialSoftmax, StateEncoder
from ript_ray.policies.quest.policy import QuestPolicy
from ript_ray.policies.quest.stages import PriorTask
from ript_ray.policies.supervised import Augmentation, SupervisedStage, Windows
from ript_ray.sft.trainer import SupervisedTrainer
from ript_ray.types import Arrays
from tests.conftest import TINY_QUEST

SEEING = replace(TINY_QUEST, cameras=("front",), sensors=(), image_size=16, image_channels=4, image_width=8)
READING = replace(TINY_QUEST, task_input="features", text_features=4)
COUNTING = replace(TINY_QUEST, task_input="index", instructions=("go left", "go right"), num_tasks=3)


def policy_of(settings: QuestConfig) -> QuestPolicy:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return QuestPolicy(settings, action_dim=1, state_dims={"state": 2, "other": 3})


def images(count: int, size: int = 16) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(256, size=(count, size, size, 3), dtype=np.uint8)


def rngs(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(row) for row in range(count)]


def test_spatial_softmax_finds_the_row_and_then_the_column_of_each_channels_maximum() -> None:
    features = torch.zeros(1, 2, 3, 3)
    features[0, 0, 0, 2] = features[0, 1, 2, 1] = 100.0
    torch.testing.assert_close(SpatialSoftmax(2, 3)(features), torch.tensor([[-1.0, 1.0, 1.0, 0.0]]))


def test_larger_images_are_scaled_down_without_flipping() -> None:
    encoder = ImageEncoder(size=16, channels=4, width=8).eval()
    large = torch.tensor(images(2, 32))
    small = F.interpolate(large.permute(0, 3, 1, 2).float(), (16, 16), mode="bilinear", align_corners=False)
    rounded = small.round().permute(0, 2, 3, 1).to(torch.uint8)
    torch.testing.assert_close(encoder(large), encoder(rounded), atol=1e-2, rtol=0)
    assert not torch.allclose(encoder(rounded), encoder(rounded.flip(1)), atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(2, 16, 16, 3), r"uint8 \(B, height, width, 3\), not torch\.float32 \(2, 16, 16, 3\)"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), r"not torch\.uint8 \(2, 3, 16, 16\)"),
        (torch.zeros(2, 16, 8, 3, dtype=torch.uint8), r"at least 16 pixels on each side, not \(16, 8\)"),
    ],
)
def test_arrays_that_are_not_images_are_refused(wrong: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageEncoder(size=16, channels=4, width=8)(wrong)


def test_a_policy_with_a_camera_learns_from_its_images_and_acts_in_evaluation_mode() -> None:
    policy, frames = policy_of(SEEING), images(8)
    chunks = np.random.default_rng(0).normal(scale=3, size=(200, 4, 1)).astype(np.float32)
    tokens = policy.autoencoder.tokens(torch.tensor(chunks))[:, 0]
    chunks = chunks[np.argsort(tokens.numpy())][[0, -1, 1, -2, 2, -3, 3, -4]]
    assert tokens.unique().numel() > 1, "there is nothing to tell apart"
    windows = Windows(("go",) * 8, {"front": frames}, chunks)
    stage = SupervisedStage(num_steps=50, batch_size=8, learning_rate=3e-3)
    task = PriorTask(stage, QuestSFT(autoencoder=stage, prior=stage, augmentation=Augmentation(color=0.0, shift=0)))
    task.prepare(policy, windows)
    policy.train()
    loss_fn, reader = task.loss_fn(policy, windows), task.reader(policy, windows)
    losses = list(SupervisedTrainer(task.parameters(policy), loss_fn, reader, settings=stage, seed=1).steps())
    policy.eval()
    assert np.mean(losses[-5:]) < 0.2 * losses[0]
    before = policy.state_arrays()
    decisions = policy.act({"front": frames}, ["go"] * 8, rngs(8))
    # Running statistics would move if a camera's encoder were still training.
    assert all(np.array_equal(array, before[name]) for name, array in policy.state_arrays().items())
    assert set(decisions.record) == {"context", "tokens"}


def test_sensors_keep_the_configured_order_and_raw_ones_have_no_normalization_weights() -> None:
    settings = replace(TINY_QUEST, sensors=("state", "other"), standardize=False)
    policy = policy_of(settings)
    assert list(policy.lowdim_encoders) == ["state", "other"]
    observations = {"state": torch.full((2, 2), 7.0), "other": torch.full((2, 3), 9.0)}
    policy.fit_standardizer({name: value.numpy() for name, value in observations.items()}, min_scale=0.05)
    assert not any("offset" in name or "scale" in name for name in policy.state_dict())
    seen = []
    for name in settings.sensors:
        encoder = policy.lowdim_encoders[name]
        assert isinstance(encoder, StateEncoder)
        seen.append(encoder.projection(observations[name]))
    context = policy.context_tokens(observations, ["go"] * 2)
    torch.testing.assert_close(context[:, 1], policy.obs_proj(torch.cat(seen, dim=-1)))


def test_text_features_travel_with_the_weights() -> None:
    policy = policy_of(READING)
    state: Arrays = {"state": np.zeros((1, 2), np.float32)}
    vector = np.arange(4, dtype=np.float32)
    policy.text_features.add({"go left": vector})
    arrays = policy.state_arrays()
    np.testing.assert_array_equal(arrays["text/go left"], vector)
    other = policy_of(READING)
    other.load_state_arrays(arrays)
    ours, theirs = (each.act(state, ["go left"], rngs(1)).record["context"] for each in (policy, other))
    np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ConfigError, match="no text features of 'go lift'; did you mean 'go left'"):
        other.act(state, ["go lift"], rngs(1))


def test_text_features_that_do_not_fit_are_listed_and_nothing_is_loaded() -> None:
    policy = policy_of(READING)
    arrays = {name: array + 1 for name, array in policy.state_arrays().items()}
    before = policy.state_arrays()
    wrong: Arrays = {"text/a": np.zeros(3, np.float32), "text/b": np.zeros(4), "text/c": np.zeros(4, np.float32)}
    with pytest.raises(CheckpointError) as caught:
        policy.load_state_arrays({**arrays, **wrong})
    assert "'a' is float32 (3,), not float32 (4,)" in str(caught.value)
    assert "'b' is float64 (4,)" in str(caught.value)
    assert "'c'" not in str(caught.value)
    with pytest.raises(CheckpointError, match="'d' is not finite"):
        policy.text_features.add({"d": np.full(4, np.nan, np.float32)})
    with pytest.raises(CheckpointError, match="unknown text/a"):
        policy_of(TINY_QUEST).load_state_arrays({**policy_of(TINY_QUEST).state_arrays(), **wrong})
    assert all(np.array_equal(array, before[name]) for name, array in policy.state_arrays().items())
    assert not policy.text_features.vectors


def test_an_instruction_index_is_its_position_in_the_list_and_an_unknown_instruction_is_named() -> None:
    policy, state = policy_of(COUNTING), {"state": torch.zeros(2, 2)}
    context = policy.context_tokens(state, ["go right", "go left"])
    torch.testing.assert_close(context[:, 0], policy.task_encoder.weight[[1, 0]])
    with pytest.raises(ConfigError, match="does not know the instruction 'go write'; did you mean 'go right'"):
        policy.context_tokens(state, ["go write", "go left"])


def test_weights_of_another_type_are_refused() -> None:
    policy = policy_of(TINY_QUEST)
    arrays = policy.state_arrays()
    arrays["obs_proj.bias"] = arrays["obs_proj.bias"].astype(np.float64)
    with pytest.raises(CheckpointError, match=r"obs_proj\.bias has type float64, not float32"):
        policy.load_state_arrays(arrays)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sensors": ()}, "must together name at least one"),
        ({"cameras": ("state",)}, r"must differ, not \('state', 'state'\)"),
        ({"sensors": ("a.b",)}, "must contain no dot"),
        ({"image_size": 20}, "image-size must be a multiple of 8, from 8 to 4096, not 20"),
        ({"image_channels": 0}, "image-channels must be from 1 to 65536, not 0"),
        ({"num_tasks": 0}, "num-tasks must be from 1 to 1000000, not 0"),
        ({"task_input": "index"}, r"number of policy\.instructions must be from 1 to 50, not 0"),
        ({"instructions": ("a",)}, r"policy\.instructions require task-input index, not hashed"),
        ({"task_input": "index", "instructions": ("a", "a")}, "must differ from each other"),
    ],
)
def test_impossible_inputs_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuestConfig(**changes)
