"""MetaWorld v3: 50 tabletop tasks of one Sawyer arm, with low-dimensional observations.

Source: Yu et al. 2019 (Meta-World); the package `metaworld` 3.x.
"""

import functools
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import Environment, Observation, require_task

STATE_DIM = 39
"""Hand, gripper and objects now (18), the same one step before (18), goal position (3); metres and quaternions."""

HAND, GRIPPER, OBJECT, GOAL = slice(0, 3), slice(3, 4), slice(4, 7), slice(36, 39)
"""Where the parts of interest lie in the state."""

RELATIVE_DIM = 10
"""Gripper opening (1), then in metres: hand, first object seen from the hand, goal seen from the hand (3 each)."""


@dataclass(frozen=True)
class MetaWorld:
    """The benchmark as a value; simulators are built lazily by `make`.

    Attributes:
        goal_visible: Whether the goal position is part of the observation, or three zeros.
    """

    goal_visible: bool = True

    @property
    def tasks(self) -> tuple[str, ...]:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        return tuple(sorted(ALL_V3_ENVIRONMENTS))

    @property
    def action_dim(self) -> int:
        return 4

    @property
    def state_dims(self) -> dict[str, int]:
        return {"state": STATE_DIM, "relative": RELATIVE_DIM}

    @property
    def max_steps(self) -> int:
        return 500

    def instruction(self, task: str) -> str:
        """The task's name in words: `drawer-open-v3` -> `drawer open` (MetaWorld ships no sentences)."""
        require_task(task, self.tasks, "MetaWorld")
        return task.removesuffix("-v3").replace("-", " ")

    def make(self, task: str) -> Environment:
        require_task(task, self.tasks, "MetaWorld")
        return MetaWorldEnvironment(task, goal_visible=self.goal_visible)

    def draw_initial_state(self, task: str, seed: tuple[int, ...]) -> NDArray[np.float64]:
        """The task's random reset vector (object and goal positions in metres), by the environment's own rules."""
        return _drawing_environment(task).draw_initial_state(seed)


class MetaWorldEnvironment:
    """One MetaWorld task behind the `Environment` contract."""

    def __init__(self, task: str, *, goal_visible: bool = True):
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        self._task = task
        self._sim = ALL_V3_ENVIRONMENTS[task]()
        self._sim._partially_observable = not goal_visible
        self._sim.__dict__.pop("sawyer_observation_space", None)  # cached for the other visibility
        # MetaWorld hands tasks over as pickles (`set_task`); a task is nothing but this vector.
        self._sim._set_task_called = True
        self._sim._freeze_rand_vec = True
        self._state: NDArray[np.float64] = np.zeros(STATE_DIM)
        self._expert: Any = None  # built when first asked

    def reset(self, initial_state: NDArray[np.float64]) -> None:
        """Start an episode.

        Args:
            initial_state: The task's reset vector, as `draw_initial_state` gives it.

        Raises:
            ValueError: The vector has another length than this task's.
        """
        expected = self._sim._random_reset_space.low.shape
        if initial_state.shape != expected:
            raise ValueError(f"{self._task} takes an initial state of shape {expected}, not {initial_state.shape}")
        self._sim._last_rand_vec = np.array(initial_state, dtype=np.float64)
        # MetaWorld's own reset moves the hand once before it clears the simulator: without this line
        # the episode would depend, in its last bits, on the one before.
        mujoco.mj_resetData(self._sim.model, self._sim.data)
        self._sim._did_see_sim_exception = False
        self._state, _ = self._sim.reset()

    def step(self, action: NDArray[np.float32]) -> bool:
        self._state, _, _, _, info = self._sim.step(np.clip(action, -1.0, 1.0))
        return bool(info["success"])

    def observe(self) -> Observation:
        state = self._state.astype(np.float32)
        hand = state[HAND]
        relative = np.concatenate([state[GRIPPER], hand, state[OBJECT] - hand, state[GOAL] - hand])
        return {"state": state, "relative": relative}

    def expert_action(self) -> NDArray[np.float32]:
        from metaworld.policies import ENV_POLICY_MAP

        if self._expert is None:
            self._expert = ENV_POLICY_MAP[self._task]()
        state = self._state.copy()
        state[GOAL] = self._sim._get_pos_goal()
        with warnings.catch_warnings():  # the scripts warn where they saturate; clipping is what they mean
            warnings.simplefilter("ignore")
            action = self._expert.get_action(state)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def close(self) -> None:
        self._sim.close()

    def draw_initial_state(self, seed: tuple[int, ...]) -> NDArray[np.float64]:
        """Draw a reset vector by the task's own rules (some redraw until objects lie apart); ends any episode."""
        self._sim.np_random = np.random.default_rng((zlib.crc32(self._task.encode()), *seed))
        self._sim._freeze_rand_vec, self._sim.seeded_rand_vec = False, True
        try:
            self._sim.reset_model()
        finally:
            self._sim._freeze_rand_vec, self._sim.seeded_rand_vec = True, False
        return np.array(self._sim._last_rand_vec, dtype=np.float64)


@functools.lru_cache(maxsize=64)
def _drawing_environment(task: str) -> MetaWorldEnvironment:
    require_task(task, MetaWorld().tasks, "MetaWorld")
    return MetaWorldEnvironment(task)
