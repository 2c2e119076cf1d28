"""How OpenVLA-OFT's actions and proprioception are meant, against the authors' code."""

from pathlib import Path

import numpy as np
import pytest

from ript_ray.errors import CheckpointError, ConfigError
from ript_ray.policies.openvla_oft.statistics import STATISTICS_FILE, Statistics, proprioception
from tests.oft_fixture import CHECKPOINT, Change, arrays, changed

SUITE, KEY = "libero_goal", "libero_goal_no_noops"


@pytest.fixture(scope="module")
def statistics() -> Statistics:
    return Statistics.read(CHECKPOINT, SUITE)


def test_proprioception_is_normalized_as_the_authors_do(statistics: Statistics):
    expected = arrays("expected.npz")
    raw = proprioception(expected["eef_pos"], expected["proprio_raw"][:, 3:6], expected["gripper_qpos"])
    np.testing.assert_array_equal(raw, expected["proprio_raw"])
    np.testing.assert_array_equal(statistics.normalize_proprio(raw), expected["proprio_normalized"])


@pytest.mark.parametrize("variant", ["base", "lora_llm_only", "lora_all"])
@pytest.mark.parametrize("source", ["single/mu", "split/mu", "sample/normalized"])
def test_actions_of_the_environment_are_those_of_the_authors(variant: str, source: str, statistics: Statistics):
    expected, name = arrays("expected.npz"), f"{variant}/{source.partition('/')[0]}"
    normalized = expected[f"{variant}/{source}"]
    unnormalized, commands = statistics.action.unnormalize(normalized), statistics.environment_actions(normalized)
    np.testing.assert_allclose(unnormalized, expected[f"{name}/actions_unnormalized"], atol=1e-7)
    np.testing.assert_allclose(commands, expected[f"{name}/env_actions"], atol=1e-7)


def test_actions_of_a_demonstration_survive_normalization_and_its_inverse(statistics: Statistics):
    low, high = statistics.action.low, statistics.action.high
    actions = np.random.default_rng(0).uniform(low, high, (100, 8, 7))
    actions[..., -1] = np.random.default_rng(1).choice([-1.0, 1.0], (100, 8))
    normalized = statistics.normalize_actions(actions)
    np.testing.assert_array_equal(normalized[..., -1], np.where(actions[..., -1] == -1.0, 1.0, 0.0))
    np.testing.assert_allclose(statistics.environment_actions(normalized), actions, atol=1e-12)


def test_actions_outside_the_percentiles_are_clipped_in_targets_but_not_when_sampled(statistics: Statistics):
    far = np.array([*statistics.action.high[:6] + 1.0, 1.0])
    np.testing.assert_array_equal(statistics.normalize_actions(far), [1, 1, 1, 1, 1, 1, 0])
    sampled = statistics.environment_actions(np.full(7, 3.0))
    assert (sampled[:6] > statistics.action.high[:6]).all()
    assert sampled[6] == -1.0


def test_statistics_are_of_the_suite_with_or_without_its_ending_and_of_no_other(tmp_path: Path):
    assert Statistics.read(CHECKPOINT, SUITE).key == KEY
    folder = changed(tmp_path, STATISTICS_FILE, lambda content: content.update({SUITE: content[KEY]}))
    assert Statistics.read(folder, SUITE).key == SUITE
    with pytest.raises(ConfigError, match=f"no statistics of libero_spatial, only of {KEY}, {SUITE}"):
        Statistics.read(folder, "libero_spatial")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.pop("proprio"), "it has no 'proprio'"),
        (lambda entry: entry["action"].pop("q99"), "it has no 'q99'"),
        (lambda entry: entry["action"]["q01"].pop(), "have 6, 7 and 7 entries"),
        (lambda entry: entry["action"].update(q99=[float("nan")] * 7), "q99 must be finite"),
        (lambda entry: entry["action"].update(q99=[10**400] * 7), "too large"),
        (lambda entry: entry["action"].update(q01=["0"] * 7), "q01 must be a list of numbers"),
        (lambda entry: entry["action"].update(q01=[9] * 7), "q01 is above q99 in entry 0"),
        (lambda entry: entry["action"].update(mask=[1] * 7), "mask must be a list of true and false"),
        (lambda entry: entry.update(action=3), "is damaged"),
    ],
)
def test_damaged_statistics_are_refused_by_name(change: Change, message: str, tmp_path: Path):
    folder = changed(tmp_path, STATISTICS_FILE, lambda content: change(content[KEY]))
    with pytest.raises(CheckpointError, match=message):
        Statistics.read(folder, SUITE)
