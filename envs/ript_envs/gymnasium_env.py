"""Gymnasium environments of a benchmark's tasks, with reward 1 for success, which ends the episode."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ript_envs.contract import Benchmark, Observation
from ript_envs.metaworld.benchmark import MetaWorld


class TaskEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """One task. `reset` accepts the option `initial_state`; without it, the state is drawn from the seed."""

    def __init__(self, benchmark: Benchmark, task: str, *, render_mode: str | None = None):
        """Build the simulator.

        Args:
            benchmark: The benchmark; images of its `cameras` are part of the observation.
            task: One of its tasks.
            render_mode: rgb_array to enable `render`.

        Raises:
            ValueError: The task is unknown, or there is no camera to render.
        """
        if render_mode is not None and not benchmark.spec.image_shapes:
            raise ValueError(f"{task} has no camera to render")
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(benchmark.spec.control_hz)}
        self.render_mode = render_mode
        self._benchmark = benchmark
        self._task = task
        self._environment = benchmark.make(task)
        self._num_steps = 0
        self.action_space = spaces.Box(-1.0, 1.0, (benchmark.spec.action_dim,), np.float32)
        states = {
            name: spaces.Box(-np.inf, np.inf, (dim,), np.float32) for name, dim in benchmark.spec.state_dims.items()
        }
        images = {name: spaces.Box(0, 255, benchmark.spec.image_shapes[name], np.uint8) for name in benchmark.cameras}
        self.observation_space = spaces.Dict({**states, **images})

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode at `options["initial_state"]`, or at a state drawn from the seed."""
        super().reset(seed=seed)
        given = (options or {}).get("initial_state")
        if given is None:
            given = self._benchmark.draw_initial_state(self._task, (int(self.np_random.integers(2**31)),))
        initial_state = np.asarray(given, dtype=np.float64)
        self._environment.reset(initial_state)
        self._num_steps = 0
        return self._environment.observe(), {"initial_state": initial_state}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Apply an action; the episode ends with success, or is truncated at the benchmark's limit."""
        success = self._environment.step(action)
        self._num_steps += 1
        is_late = not success and self._num_steps >= self._benchmark.spec.max_steps
        return self._environment.observe(), float(success), success, is_late, {"success": success}

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Return the image of the benchmark's first camera, or None without a render mode."""
        if self.render_mode is None:
            return None
        return self._environment.render(next(iter(self._benchmark.spec.image_shapes)))

    def close(self) -> None:
        """Release the simulator."""
        self._environment.close()


def make_task_env(benchmark: Benchmark, task: str, *, render_mode: str | None = None, **settings: Any) -> TaskEnv:
    """Build the environment of a task; `settings` override fields of the benchmark."""
    return TaskEnv(replace(benchmark, **settings), task, render_mode=render_mode)  # type: ignore[type-var]


def register(benchmark: Benchmark | None = None) -> None:
    """Register every task of a benchmark with Gymnasium; doing so twice is harmless.

    A task's name is `ript-<label>/<task>`, such as `ript-metaworld/push-v3` or, of `Libero(suite="libero_goal")`,
    `ript-libero_goal/turn_on_the_stove`.

    Args:
        benchmark: The benchmark; MetaWorld if not given.
    """
    benchmark = benchmark or MetaWorld()
    for task in benchmark.tasks:
        name = f"ript-{benchmark.label}/{task}"
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                entry_point="ript_envs.gymnasium_env:make_task_env",
                kwargs={"benchmark": benchmark, "task": task},
                order_enforce=True,
            )
