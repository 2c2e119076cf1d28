"""MetaWorld's simulator as an `Environment`."""

import functools
import warnings
import zlib
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import Observation
from ript_envs.metaworld.benchmark import STATE_DIMS, MetaWorld
from ript_envs.metaworld.objects import NUM_ENTRIES
from ript_envs.metaworld.stepping import Stepper
from ript_envs.rendering import OffscreenRenderer, shared_renderer

HAND, GRIPPER, OBJECT, GOAL = slice(0, 3), slice(3, 4), slice(4, 7), slice(36, 39)
"""Entries of the sensor `state`: hand, gripper and objects now (18) and one step before (18), goal position (3); metres
and quaternions. `relative` consists of the gripper opening and, in metres, the positions of the hand, the first object
and the goal, the latter two relative to the hand."""

ROBOT_STATE = [*range(0, 4), *range(18, 22)]
"""Hand and gripper now and one step before: the robot state of the papers' policies."""

CAMERA_POSES = {"corner_rgb": ("corner2", (0.75, 0.075, 0.7))}
"""Name of each camera in the simulator's model, and its position in QueST, in metres."""

MAX_RESAMPLES = 10
"""Limit on requests for the reset vector per reset: MetaWorld needs two, but loops forever on an invalid vector."""


class MetaWorldEnvironment:
    """One MetaWorld task."""

    def __init__(self, task: str, settings: MetaWorld):
        from ript_envs.metaworld.hand import build_simulator

        self._task = task
        self._settings = settings
        self._sim = build_simulator(task)
        self._use = self._sim.use
        self._sim._partially_observable = not settings.goal_visible
        self._sim.__dict__.pop("sawyer_observation_space", None)  # cached with the default visibility
        for name, position_m in CAMERA_POSES.values():  # before the first reset, which applies it
            self._sim.model.camera(name).pos[:] = position_m
        # MetaWorld passes tasks as pickles (`set_task`), which contain no more than this vector.
        self._sim._set_task_called = True
        self._sim._freeze_rand_vec = True
        with self._use:
            self._stepper = Stepper(task, self._sim)
        self._state: NDArray[np.float64] | None = np.zeros(STATE_DIMS["state"])  # None after a step, until it is read
        self._expert: Any = None  # built on first use
        self._renderer: OffscreenRenderer | None = None  # likewise
        self._num_resamples = 0
        self._next_reset_vector = self._sim._get_state_rand_vec
        self._sim._get_state_rand_vec = self._reset_vector

    def reset(self, initial_state: NDArray[np.float64]) -> None:
        """Start an episode.

        Args:
            initial_state: The task's reset vector; see `draw_initial_state`.

        Raises:
            ValueError: The vector has another length than this task's, or violates its constraints (some tasks
                require a minimum distance between object and goal).
        """
        self._take(initial_state)
        with self._use:
            # MetaWorld's own reset moves the hand once before it clears the simulator: without this line, the last bits
            # of an episode would depend on the previous one.
            mujoco.mj_resetData(self._sim.model, self._sim.data)
            self._sim._did_see_sim_exception = False
            self._state, _ = self._sim.reset()
        self._stepper.begin(self._state[:NUM_ENTRIES].copy())

    def step(self, action: NDArray[np.float32]) -> bool:
        self._state = None
        with self._use:
            return self._stepper.step(action)

    def observe(self) -> Observation:
        state = self._read_state().astype(np.float32)
        hand = state[HAND]
        relative = np.concatenate([state[GRIPPER], hand, state[OBJECT] - hand, state[GOAL] - hand])
        images = {camera: self.render(camera) for camera in self._settings.cameras}
        return {"state": state, "relative": relative, "robot_states": state[ROBOT_STATE], **images}

    def render(self, camera: str) -> NDArray[np.uint8]:
        settings, model = self._settings, self._sim.model
        if self._renderer is None:
            self._renderer = shared_renderer(self._task, model, size=settings.image_size, rendering=settings.rendering)
        with self._use:  # the camera is mounted upside down, so its bottom row is the top of the scene
            return self._renderer.draw(model, self._sim.data, model.camera(CAMERA_POSES[camera][0]).id)

    def expert_action(self) -> NDArray[np.float32]:
        from metaworld.policies import ENV_POLICY_MAP

        if self._expert is None:
            self._expert = ENV_POLICY_MAP[self._task]()
        state = self._read_state().copy()
        with self._use:
            state[GOAL] = self._sim._get_pos_goal()
        with warnings.catch_warnings():  # the scripts warn when actions saturate; they are clipped below
            warnings.simplefilter("ignore")
            action = self._expert.get_action(state)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def _read_state(self) -> NDArray[np.float64]:
        """Return the stock observation (39,), which is read at most once per step."""
        if self._state is None:
            with self._use:
                self._state = self._stepper.observation()
        return self._state

    def close(self) -> None:
        self._renderer = None
        self._sim.close()

    def draw_initial_state(self, seed: tuple[int, ...]) -> NDArray[np.float64]:
        """Draw a valid reset vector (some tasks resample until object and goal are apart); ends any episode."""
        self._sim.np_random = np.random.default_rng((zlib.crc32(self._task.encode()), *seed))
        self._sim._freeze_rand_vec, self._sim.seeded_rand_vec = False, True
        try:
            self._resample()
        finally:
            self._sim._freeze_rand_vec, self._sim.seeded_rand_vec = True, False
        return np.array(self._sim._last_rand_vec, dtype=np.float64)

    def allows(self, initial_state: NDArray[np.float64]) -> bool:
        """Return whether a vector satisfies the task's constraints; ends any episode."""
        self._take(initial_state)
        try:
            self._resample()
        except ValueError:
            return False
        return True

    def _resample(self) -> None:
        """Let the task take a reset vector, asking until one is valid, but leave the hand where it is."""
        with self._use:
            mujoco.mj_resetData(self._sim.model, self._sim.data)
            mujoco.mj_forward(self._sim.model, self._sim.data)
            self._sim.hand_matters = False
            try:
                self._sim.reset_model()
            finally:
                self._sim.hand_matters = True

    def _take(self, initial_state: NDArray[np.float64]) -> None:
        expected = self._sim._random_reset_space.low.shape
        if initial_state.shape != expected:
            raise ValueError(f"{self._task} takes an initial state of shape {expected}, not {initial_state.shape}")
        self._sim._last_rand_vec = np.array(initial_state, dtype=np.float64)
        self._num_resamples = 0

    def _reset_vector(self) -> NDArray[np.float64]:
        """Return the reset vector. MetaWorld asks until it is valid, so an invalid fixed vector must raise."""
        if self._sim._freeze_rand_vec:
            self._num_resamples += 1
            if self._num_resamples > MAX_RESAMPLES:
                vector = self._sim._last_rand_vec.tolist()
                raise ValueError(
                    f"{self._task} does not allow the initial state {vector}: objects and goal are too close"
                )
        return self._next_reset_vector()


@functools.lru_cache(maxsize=64)
def drawing_environment(task: str) -> MetaWorldEnvironment:
    """Return this process's environment for drawing initial states of a task."""
    return MetaWorldEnvironment(task, MetaWorld())
