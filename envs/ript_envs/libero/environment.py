"""LIBERO's simulator as an `Environment`: the physics of the stock environment in a fraction of its time.

A stock environment step of 25 simulator steps computes the forward dynamics three times in each, runs the controller in
Python, and updates observables that no policy reads. Here each simulator step is halved: kinematics, compiled
controller, dynamics.
"""

import functools
import zlib
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import Observation
from ript_envs.libero import simulator
from ript_envs.libero.benchmark import Libero
from ript_envs.libero.controller import MAX_STEP, rotation, write_controls, write_finger_controls
from ript_envs.rendering import OffscreenRenderer, shared_renderer

CAMERA_NAMES = {"agentview_rgb": "agentview", "eye_in_hand_rgb": "robot0_eye_in_hand"}
"""Name of each camera in the simulator's model."""

COLLISION_SHAPES = 0
"""The group of geoms that collide; LIBERO does not draw them."""

NUM_SUBSTEPS = 25
"""Simulator steps of 2 ms in an environment step."""


class LiberoEnvironment:
    """One LIBERO task.

    Environments of a task share a model: in several threads, they take turns.
    """

    def __init__(self, task: str, settings: Libero):
        self._task = task
        self._settings = settings
        self._simulator = simulator.shared(
            settings.suite,
            task,
            simplified_meshes=settings.simplified_meshes,
            small_textures=settings.small_textures,
        )
        self._scene = self._simulator.new_scene()
        self._model, self._data = self._simulator.model, self._scene.data
        self._arm = _Arm(self._simulator.stock.robots[0], self._model, self._data)
        self._renderer: OffscreenRenderer | None = None  # built on first use
        self._stale: Observation | None = None

    def reset(self, initial_state: NDArray[np.float64]) -> None:
        """Start an episode.

        Furniture that cannot move is no part of the state: LIBERO draws its place (within a centimetre) in every reset.
        Here the initial state seeds the draw.

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
        self._draw_scene(zlib.crc32(state.tobytes()))
        self._stale = None
        if self._settings.reset_mode == "legacy":
            self._settle()
            self._stale = self.observe()
        self._set_state(state)
        if self._settings.reset_mode == "settled":
            self._settle()

    def step(self, action: NDArray[np.float32]) -> bool:
        command = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        self._stale = None
        model, data, arm = self._model, self._data, self._arm
        with self._simulator.active(self._scene):
            for substep in range(NUM_SUBSTEPS):
                mujoco.mj_step1(model, data)
                _solve_twice(model, data)
                if substep == 0:
                    arm.move_goal(command[:6])
                arm.actuate(float(np.sign(command[6])))
                mujoco.mj_step2(model, data)
            return bool(self._simulator.stock._check_success())

    def observe(self) -> Observation:
        if self._stale is not None:
            return dict(self._stale)
        # Images as LIBERO stores them and its policies read them: bottom row first.
        return {**self._arm.observe(), **{camera: self._draw(camera) for camera in self._settings.cameras}}

    def render(self, camera: str) -> NDArray[np.uint8]:
        return self._draw(camera)[::-1]

    def close(self) -> None:
        vars(self).clear()  # the last environment of a task frees the model

    def draw_initial_state(self, seed: tuple[int, ...]) -> NDArray[np.float64]:
        """Draw object positions as LIBERO's reset does and let them come to rest; ends any episode."""
        self._draw_scene(int(np.random.default_rng(seed).integers(2**32)))
        self._settle()
        return np.concatenate([[self._data.time], self._data.qpos, self._data.qvel])

    def free_objects(self) -> NDArray[np.int64]:
        """Return where the horizontal position (2,) of each free object begins in an initial state."""
        is_free = self._model.jnt_type == mujoco.mjtJoint.mjJNT_FREE
        return np.array(1 + self._model.jnt_qposadr[is_free], dtype=np.int64)

    def _draw_scene(self, seed: int) -> None:
        with self._simulator.active(self._scene):
            self._simulator.draw_scene(seed)
            self._begin()

    def _set_state(self, state: NDArray[np.float64]) -> None:
        nq = self._model.nq
        with self._simulator.active(self._scene):
            self._data.time = state[0]
            self._data.qpos[:] = state[1 : 1 + nq]
            self._data.qvel[:] = state[1 + nq :]
            self._begin()

    def _begin(self) -> None:
        mujoco.mj_forward(self._model, self._data)
        self._arm.begin()

    def _settle(self) -> None:
        for _ in range(self._settings.settle_steps):
            self.step(np.zeros(7, dtype=np.float32))

    def _draw(self, camera: str) -> NDArray[np.uint8]:
        settings, model = self._settings, self._model
        with self._simulator.active(self._scene):
            if self._renderer is None:
                self._renderer = shared_renderer(
                    (settings.suite, self._task, settings.simplified_meshes, settings.small_textures),
                    model,
                    size=settings.image_size,
                    rendering=settings.rendering,
                    hidden_groups=(COLLISION_SHAPES,),
                )
            self._simulator.stock._post_process()  # lights of switches
            return self._renderer.draw(model, self._data, model.camera(CAMERA_NAMES[camera]).id)


def _solve_twice(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    """Solve for the accelerations under the last controls, twice, as the stock environment does in each simulator step.

    The solver stops at a tolerance, so its result depends on where it starts: without this, joint positions differ from
    the stock environment's by up to 1e-4 after 200 steps; with it, by 1e-12.
    """
    mujoco.mj_fwdActuation(model, data)
    mujoco.mj_fwdAcceleration(model, data)
    mujoco.mj_fwdConstraint(model, data)
    mujoco.mj_fwdConstraint(model, data)


class _Arm:
    """The arm in the simulator's arrays, its controller, and its sensors."""

    def __init__(self, robot: Any, model: mujoco.MjModel, data: mujoco.MjData):
        """Look up the indices of robosuite's robot."""
        self._model, self._data, self._site = model, data, robot.eef_site_id
        self._goal = np.zeros(3), np.eye(3)
        self._grip = np.zeros(2)
        qpos_index, qvel_index = np.array(robot._ref_joint_pos_indexes), np.array(robot._ref_joint_vel_indexes)
        self._sensed = qpos_index, np.array(robot._ref_gripper_joint_pos_indexes)
        finger_ctrl = np.array(robot._ref_joint_gripper_actuator_indexes)
        self._fingers = finger_ctrl, model.actuator_ctrlrange[finger_ctrl]
        self._robot = (
            qpos_index,
            qvel_index,
            np.array(robot._ref_joint_actuator_indexes),
            _mass_index(model, qvel_index),
            np.array(robot.controller.initial_joint, dtype=np.float64),
            np.array(robot.torque_limits, dtype=np.float64),
        )
        self._jacobians = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        # Views of the simulator's memory, made once
        self._hand = data.site_xpos[self._site], data.site_xmat[self._site].reshape(3, 3), *self._jacobians
        self._state = data.qpos, data.qvel, data.qfrc_bias, data.qM, data.ctrl

    def begin(self) -> None:
        """Stay here, with the fingers half open."""
        self._goal = self._hand[0].copy(), self._hand[1].copy()
        self._grip[:] = 0.0

    def move_goal(self, action: NDArray[np.float64]) -> None:
        """Set the hand's goal for an action (6,) from where it is; without rotation, it keeps its goal's orientation."""
        delta = action * MAX_STEP
        orientation = rotation(delta[3:]) @ self._hand[1] if delta[3:].any() else self._goal[1]
        self._goal = self._hand[0] + delta[:3], orientation

    def actuate(self, direction: float) -> None:
        """Write the controls of arm and fingers; direction 1 closes the fingers, -1 opens them."""
        mujoco.mj_jacSite(self._model, self._data, *self._jacobians, self._site)
        write_controls(self._state, self._hand, self._robot, self._goal)
        write_finger_controls(self._state[4], self._fingers, self._grip, direction)

    def observe(self) -> Observation:
        """Return what the arm senses, see `STATE_DIMS`."""
        quaternion, vector = np.zeros(4), np.zeros(3)
        mujoco.mju_mat2Quat(quaternion, self._hand[1].ravel())
        mujoco.mju_quat2Vel(vector, quaternion, 1.0)
        qpos = self._data.qpos
        return {
            "joint_states": qpos[self._sensed[0]].astype(np.float32),
            "ee_pos": self._hand[0].astype(np.float32),
            "ee_ori": vector.astype(np.float32),
            "gripper_states": qpos[self._sensed[1]].astype(np.float32),
        }


def _mass_index(model: mujoco.MjModel, dofs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where the entries of the mass matrix of a chain of joints are in the simulator's sparse array."""
    index = np.zeros((len(dofs), len(dofs)), dtype=np.int64)
    for row, dof in enumerate(dofs):
        column, address = int(dof), int(model.dof_Madr[dof])
        while column >= 0:  # from the joint towards the base
            if column in dofs:
                position = int(np.flatnonzero(dofs == column)[0])
                index[row, position] = index[position, row] = address
            column, address = int(model.dof_parentid[column]), address + 1
    return index


@functools.lru_cache(maxsize=1)
def drawing_environment(task: str, suite: Any) -> LiberoEnvironment:
    """Return this process's environment for drawing initial states of a task; its model is shared with others."""
    return LiberoEnvironment(task, Libero(suite=suite))


@functools.cache
def free_objects(task: str, suite: Any) -> NDArray[np.int64]:
    """Return where the free objects of a task are in its initial states; see `LiberoEnvironment.free_objects`."""
    return drawing_environment(task, suite).free_objects()
