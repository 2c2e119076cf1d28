"""LIBERO's simulator as an `Environment`: the physics of the stock environment in a fraction of its time.

A stock environment step of 25 simulator steps computes the forward dynamics three times in each, runs the controller in
Python, and updates observables that no policy reads. Here each simulator step is halved: kinematics, compiled
controller, dynamics.
"""

import functools
import zlib

import mujoco
import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import Observation
from ript_envs.libero.arm import Arm
from ript_envs.libero.benchmark import Libero
from ript_envs.libero.expert import Expert
from ript_envs.libero.placement import move_objects
from ript_envs.libero.scene import State, scene_key, shared_scene
from ript_envs.rendering import OffscreenRenderer, shared_renderer

CAMERA_NAMES = {"agentview_rgb": "agentview", "eye_in_hand_rgb": "robot0_eye_in_hand"}
"""Name of each camera in the simulator's model."""

COLLISION_SHAPES = 0
"""The group of geoms that collide; LIBERO does not draw them."""

NUM_SUBSTEPS = 25
"""Simulator steps of 2 ms in an environment step."""

STILL = np.zeros(7, dtype=np.float32)
OPENING = np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float32)
"""Actions without motion of the hand: the fingers stay where they are, or open."""


class LiberoEnvironment:
    """One LIBERO task."""

    def __init__(self, task: str, settings: Libero):
        self._task = task
        self._settings = settings
        self._scene = shared_scene(task, settings)
        self._state = State(self._scene)
        self._model, self._data = self._scene.model, self._state.data
        self._arm = Arm(self._scene.stock.robots[0], self._model, self._data)
        self._renderer: OffscreenRenderer | None = None  # built on first use
        self._stale: Observation | None = None
        self._expert: Expert | None = None
        self._settled = np.zeros(0), np.zeros(0)  # a state, and joint positions after coming to rest from it

    def reset(self, initial_state: NDArray[np.float64]) -> None:
        """Start an episode.

        Furniture that cannot move is no part of the state: LIBERO draws its place (within a centimetre) in every reset.
        Here the initial state of the arm seeds the draw: it differs between states, but not by noise on the objects, so
        that all rollouts of a group have the same furniture.

        Args:
            initial_state: Time, joint positions and joint velocities of the simulator, as in LIBERO's files (1 + nq +
                nv,).

        Raises:
            ValueError: The vector has another length than this task's.
        """
        length = 1 + self._model.nq + self._model.nv
        if initial_state.shape != (length,):
            raise ValueError(f"{self._task} takes an initial state of shape {(length,)}, not {initial_state.shape}")
        state = np.ascontiguousarray(initial_state, dtype=np.float64)
        self._draw(self._furniture_seed(state))
        self._stale = self._expert = None
        waiting = OPENING if self._settings.settle_gripper == "open" else STILL
        if self._settings.reset_mode == "legacy":
            self._settle(waiting)
            self._stale = self.observe()
        self._set_state(state)
        if self._settings.reset_mode == "settled":
            self._settle(waiting)

    def step(self, action: NDArray[np.float32]) -> bool:
        command = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        self._stale = None
        self._scene.show(self._state)
        model, data, arm = self._model, self._data, self._arm
        direction = float(np.sign(command[6]))
        for substep in range(NUM_SUBSTEPS):
            mujoco.mj_step1(model, data)
            _solve_twice(model, data)
            if substep == 0:
                arm.move_goal(command[:6])
            arm.actuate(direction)
            mujoco.mj_step2(model, data)
        return bool(self._scene.stock._check_success())

    def observe(self) -> Observation:
        if self._stale is not None:
            return dict(self._stale)
        # Images as LIBERO stores them and its policies read them: bottom row first.
        return {**self._arm.observe(), **{camera: self._image(camera) for camera in self._settings.cameras}}

    def render(self, camera: str) -> NDArray[np.uint8]:
        return self._image(camera)[::-1]

    def expert_action(self) -> NDArray[np.float32]:
        self._scene.show(self._state)
        if self._expert is None:
            self._expert = Expert(self._scene.stock, self._data)
        return self._expert.action()

    def simulator_state(self) -> NDArray[np.float64]:
        return np.concatenate([[self._data.time], self._data.qpos, self._data.qvel])

    def close(self) -> None:
        vars(self).clear()  # whoever keeps a closed environment keeps no model

    def draw_initial_state(self, seed: tuple[int, ...]) -> NDArray[np.float64]:
        """Draw object positions as LIBERO's reset does and let them come to rest; ends any episode."""
        self._draw(int(np.random.default_rng(seed).integers(2**32)))
        self._settle()
        return self.simulator_state()

    def move_objects(
        self, initial_state: NDArray[np.float64], *, std_m: float, generator: np.random.Generator
    ) -> NDArray[np.float64]:
        """Return the state with its objects at rest and moved, see `placement`; by 0 m as it is. Ends any episode."""
        state = np.array(initial_state, dtype=np.float64)
        if std_m == 0:
            return state
        if not np.array_equal(state, self._settled[0]):  # else for another rollout of the same group
            self._draw(self._furniture_seed(state))
            self._set_state(state)
            self._settle()
            self._settled = state.copy(), self._data.qpos.copy()
        poses, velocities = self._objects_in_state()
        state[poses], state[velocities] = self._settled[1][poses - 1], 0.0
        self._scene.show(self._state)
        self._set_state(state)
        move_objects(self._model, self._data, std_m=std_m, generator=generator)
        state[poses] = self._data.qpos[poses - 1]
        return state

    def _furniture_seed(self, state: NDArray[np.float64]) -> int:
        return zlib.crc32(np.delete(state, np.concatenate(self._objects_in_state())).tobytes())

    def _objects_in_state(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where the poses and the velocities of the objects are in a state."""
        model = self._model
        free = model.jnt_type == mujoco.mjtJoint.mjJNT_FREE
        poses = 1 + model.jnt_qposadr[free][:, None] + np.arange(7)
        velocities = 1 + model.nq + model.jnt_dofadr[free][:, None] + np.arange(6)
        return poses.ravel(), velocities.ravel()

    def _draw(self, seed: int) -> None:
        self._scene.draw(self._state, seed)
        self._begin()

    def _set_state(self, state: NDArray[np.float64]) -> None:
        nq = self._model.nq
        self._data.time = state[0]
        self._data.qpos[:] = state[1 : 1 + nq]
        self._data.qvel[:] = state[1 + nq :]
        self._begin()

    def _begin(self) -> None:
        mujoco.mj_forward(self._model, self._data)
        self._arm.hold()

    def _settle(self, action: NDArray[np.float32] = STILL) -> None:
        for _ in range(self._settings.settle_steps):
            self.step(action)

    def _image(self, camera: str) -> NDArray[np.uint8]:
        settings, model = self._settings, self._model
        if self._renderer is None:
            self._renderer = shared_renderer(
                scene_key(self._task, settings),
                model,
                size=settings.image_size,
                rendering=settings.rendering,
                hidden_groups=(COLLISION_SHAPES,),
            )
        self._scene.show(self._state)
        self._scene.stock._post_process()  # lights of switches
        return self._renderer.draw(model, self._data, model.camera(CAMERA_NAMES[camera]).id)


def _solve_twice(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    """Solve for the accelerations under the last controls, twice, as the stock environment does in each simulator step.

    The solver stops at a tolerance, so its result depends on where it starts: without this, joint positions differ from
    the stock environment's by up to 3e-4 after 200 steps; with it, by 1e-12.
    """
    mujoco.mj_fwdActuation(model, data)
    mujoco.mj_fwdAcceleration(model, data)
    mujoco.mj_fwdConstraint(model, data)
    mujoco.mj_fwdConstraint(model, data)


@functools.lru_cache(maxsize=1)
def drawing_environment(task: str, settings: Libero) -> LiberoEnvironment:
    """Return this process's environment for drawing and moving initial states of a task."""
    return LiberoEnvironment(task, settings)
