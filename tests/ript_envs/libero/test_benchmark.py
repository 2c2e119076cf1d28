"""All 130 tasks behind the contracts of benchmarks and of Gymnasium."""

import contextlib
import warnings
from typing import Any, get_args

import gymnasium
import numpy as np
import psutil
import pytest
from gymnasium.utils.env_checker import check_env

from ript_envs.conformance.benchmark import check_benchmark
from ript_envs.gymnasium_env import register
from ript_envs.libero.benchmark import Libero, Suite
from tests.conftest import free_memory

pytestmark = pytest.mark.sim

CAMERAS = ("agentview_rgb", "eye_in_hand_rgb")

MAX_MEMORY_BYTES = 5e9
"""Of a process that has visited all tasks, one after another; each takes 0.7 to 1.7 GB while it is there."""

QUICK: dict[str, Any] = {"rendering": "fast", "simplified_meshes": True, "small_textures": True}

EACH_SUITE = [
    pytest.param(suite, marks=() if suite == "libero_goal" else pytest.mark.slow) for suite in get_args(Suite)
]


def visit(benchmark: Libero, task: str) -> None:
    environment = benchmark.make(task)
    environment.reset(benchmark.evaluation_states(task)[0])
    before = environment.observe()
    assert environment.step(np.array([1, 0, 0, 0, 0, 0, -1], np.float32)) is False
    for _ in range(5):
        assert environment.step(np.array([1, 0, 0, 0, 0, 0, -1], np.float32)) is False, "no task begins solved"
    after = environment.observe()
    assert float(after["ee_pos"][0] - before["ee_pos"][0]) > 0.02, "the action moves the hand forward"
    images = [before[camera] for camera in benchmark.cameras] + [after[camera] for camera in benchmark.cameras]
    assert all(image.shape == (128, 128, 3) and image.std() > 10 for image in images)
    assert len({image.tobytes() for image in images}) == 4
    environment.close()


@pytest.mark.parametrize("suite", get_args(Suite))
def test_the_first_task_of_each_suite_is_reset_stepped_and_seen_by_both_cameras(suite: Suite) -> None:
    visit(Libero(suite, cameras=CAMERAS, **QUICK), Libero(suite).tasks[0])


@pytest.mark.slow
@pytest.mark.parametrize("suite", get_args(Suite))
def test_all_tasks_of_a_suite_are_visited_within_bounded_memory(suite: Suite) -> None:
    benchmark = Libero(suite, cameras=CAMERAS)
    for task in benchmark.tasks:
        visit(benchmark, task)
        free_memory()
        assert psutil.Process().memory_info().rss < MAX_MEMORY_BYTES, task


@pytest.mark.parametrize("suite", EACH_SUITE)
def test_a_suite_passes_every_conformance_check(suite: Suite) -> None:
    benchmark = Libero(suite, **QUICK)
    with contextlib.closing(benchmark.make(benchmark.tasks[0])):  # its scene is shared with all that are checked
        assert [result for result in check_benchmark(benchmark) if result.error] == []


def test_gymnasium_knows_every_task_of_a_suite_by_its_own_name_and_its_checker_finds_nothing() -> None:
    for suite in get_args(Suite):
        register(Libero(suite))
    register(Libero("libero_object", "position"))
    names = [name for name in gymnasium.registry if name.startswith("ript-libero")]
    assert len(names) == 130 + 10
    env = gymnasium.make("ript-libero_goal/turn_on_the_stove", **QUICK)
    assert env.metadata["render_fps"] == 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(infinity|Box observation space).*")  # states have no bounds
        check_env(env.unwrapped)
    env.close()


def test_an_unknown_task_or_suite_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"libero_goal has no task 'turn_on_the_stov': did you mean turn_on_the_stove"):
        Libero("libero_goal").make("turn_on_the_stov")
    with pytest.raises(ValueError, match=r"suite must be one of libero_spatial, .* not 'libero_long'"):
        Libero("libero_long")  # type: ignore[arg-type]
