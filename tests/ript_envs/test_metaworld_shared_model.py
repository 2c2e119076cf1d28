"""Environments of a task share a model, and none of them can tell."""

import gc
import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ript_envs.metaworld.benchmark import MetaWorld
from ript_envs.metaworld.environment import MetaWorldEnvironment, drawing_environment
from ript_envs.metaworld.shared_model import _MODELS

pytestmark = pytest.mark.sim


def build(task: str) -> MetaWorldEnvironment:
    environment = MetaWorld().make(task)
    assert isinstance(environment, MetaWorldEnvironment)
    return environment


def steps_of(environment: MetaWorldEnvironment, initial_state: NDArray[np.float64]) -> list[NDArray[Any]]:
    environment.reset(initial_state)
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 4)).astype(np.float32)
    observed = [environment.observe()["state"]]
    for action in actions:
        environment.step(action)
        observed.append(environment.observe()["state"])
    return observed


@pytest.mark.parametrize("task", ["window-open-v3", "box-close-v3", "pick-place-v3"])
def test_environments_that_step_at_the_same_time_see_what_each_sees_alone(task: str) -> None:
    states = [MetaWorld().draw_initial_state(task, (seed,)) for seed in range(3)]
    alone = [steps_of(build(task), state) for state in states]
    seen: dict[int, list[NDArray[Any]]] = {}

    def run(seed: int, environment: MetaWorldEnvironment) -> None:
        seen[seed] = steps_of(environment, states[seed])

    threads = [threading.Thread(target=run, args=(seed, build(task))) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(3):
        np.testing.assert_array_equal(seen[seed], alone[seed])


def test_a_model_is_compiled_once_and_freed_with_its_last_environment() -> None:
    task = "soccer-v3"
    drawing_environment.cache_clear()  # another test may have drawn states of this task
    first, second = build(task), build(task)
    assert first._sim.model is second._sim.model
    first.close()
    del first
    gc.collect()
    assert task in _MODELS
    second.close()
    del second
    gc.collect()
    assert task not in _MODELS


def test_a_model_that_was_rendered_fast_is_rendered_fully_as_well() -> None:
    state = MetaWorld().draw_initial_state("soccer-v3", (0,))

    def picture(benchmark: MetaWorld) -> NDArray[Any]:
        environment = benchmark.make("soccer-v3")
        environment.reset(state)
        kept.append(environment)  # keeps the model, and the renderer
        return environment.observe()["corner_rgb"]

    kept: list[object] = []
    full = MetaWorld(cameras=("corner_rgb",))
    fast = full.with_rendering(rendering="fast")
    before, small = picture(full), picture(full.with_rendering(image_size=32))
    kept.clear()
    gc.collect()
    cheap = picture(fast)
    np.testing.assert_array_equal(picture(full.with_rendering(image_size=32)), small)
    np.testing.assert_array_equal(picture(full), before)
    np.testing.assert_array_equal(picture(fast), cheap)
    assert (cheap != before).any()
