"""The Gymnasium interface of MetaWorld."""

import warnings
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from ript_envs.contract import Environment, EnvironmentSpec, Observation, ScriptedExpert
from ript_envs.gymnasium_env import TaskEnv, register
from ript_envs.metaworld.benchmark import MetaWorld
from ript_envs.metaworld.tasks import QUEST_TASK_ORDER

pytestmark = pytest.mark.sim

NAMESPACE = "ript-metaworld"

FAST: dict[str, Any] = {"rendering": "fast"}


@pytest.fixture(autouse=True)
def registered() -> None:
    register()


def test_repeated_registration_registers_every_task_once() -> None:
    register()
    names = [name for name in gymnasium.registry if name.startswith(f"{NAMESPACE}/")]
    assert sorted(names) == sorted(f"{NAMESPACE}/{task}" for task in QUEST_TASK_ORDER)


@pytest.mark.parametrize(("task", "cameras"), [("drawer-open-v3", ("corner_rgb",)), ("push-v3", ())])
def test_gymnasiums_environment_checker_finds_nothing(task: str, cameras: tuple[str, ...]) -> None:
    env = gymnasium.make(f"{NAMESPACE}/{task}", cameras=cameras, **FAST)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(infinity|Box observation space).*")  # states have no bounds
        check_env(env.unwrapped)
    env.close()


def test_an_episode_ends_with_success_and_reward_one() -> None:
    env = gymnasium.make(f"{NAMESPACE}/drawer-open-v3")
    observation, info = env.reset(seed=3)
    again, _ = env.reset(options={"initial_state": info["initial_state"]})
    np.testing.assert_array_equal(observation["state"], again["state"])
    assert isinstance(env.unwrapped, TaskEnv)
    expert = env.unwrapped._environment
    assert isinstance(expert, ScriptedExpert)
    rewards, ended = [], False
    while not ended:
        _, reward, ended, truncated, info = env.step(expert.expert_action())
        assert not truncated
        rewards.append(reward)
    assert rewards[-1] == 1.0
    assert info["success"]
    assert set(rewards[:-1]) == {0.0}
    env.close()


def test_an_episode_without_success_is_truncated_at_500_steps() -> None:
    env = gymnasium.make(f"{NAMESPACE}/drawer-open-v3")
    env.reset(seed=0)
    for step in range(1, 501):
        _, reward, terminated, truncated, _ = env.step(np.zeros(4, np.float32))
        assert (reward, terminated, truncated) == (0.0, False, step == 500)
    env.close()


class NoCamera(MetaWorld):
    """MetaWorld without a camera."""

    @property
    def spec(self) -> EnvironmentSpec:
        return replace(super().spec, image_shapes={})

    def make(self, task: str) -> Environment:
        raise AssertionError("built before it was checked")


def test_rendering_without_a_camera_is_refused_and_without_a_mode_returns_none() -> None:
    with pytest.raises(ValueError, match="push-v3 has no camera to render"):
        TaskEnv(NoCamera(), "push-v3", render_mode="rgb_array")
    env = gymnasium.make(f"{NAMESPACE}/push-v3")
    env.reset(seed=0)
    assert env.unwrapped.render() is None
    env.close()


def test_rendered_images_equal_the_observation() -> None:
    env = gymnasium.make(f"{NAMESPACE}/push-v3", cameras=("corner_rgb",), render_mode="rgb_array", **FAST)
    observation: Observation = env.reset(seed=1)[0]
    np.testing.assert_array_equal(env.render(), observation["corner_rgb"])
    env.close()
