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
from ript_envs.libero.controller import MAX_STEP, rotation, write_controls
from ript_envs.rendering import OffscreenRenderer, shared_renderer

CAMERA_NAMES = {"agentview_rgb": "agentview", "eye_in_hand_rgb": "robot0_eye_in_hand"}
"""Name of each camera in the simulator's model."""

COLLISION_SHAPES = 0
"""The group of geoms that collide; LIBERO does not draw them."""

GRIPPER_SPEED = np.array([-0.01, 0.01])
"""Change of the fingers' commands in a simulator step; the command 1 closes."""

NUM_SUBSTEPS = 25
"""Simulator steps of 2 ms in an environment step."""


class LiberoEnvironment:
    """One LIBERO task."""

    def __init__(self, task: str, settings: Libero):
        self._task = task
        self._settings = settings
        self._stock = simulator.build(settings.suite, task, perturbation=settings.perturbation)
        self._model: mujoco.MjModel = self._stock.sim.model._model
        self._data: mujoco.MjData = self._stock.sim.data._data
        self._arm = _Arm(self._stock)
        self._renderer: OffscreenRenderer | None = None  # built on first use
        self._stale: Observation | None = None
        self._goal = (np.zeros(3), np.eye(3))
        self._grip = np.zeros(2)

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
        for substep in range(NUM_SUBSTEPS):
            mujoco.mj_step1(model, data)
            if substep == 0:
                self._goal = arm.goal(command[:6], self._goal[1])
            self._grip = np.clip(self._grip + GRIPPER_SPEED * np.sign(command[6]), -1.0, 1.0)
            arm.actuate(self._goal, self._grip)
            mujoco.mj_step2(model, data)
        return bool(self._stock._check_success())

    def observe(self) -> Observation:
        if self._stale is not None:
            return dict(self._stale)
        data, arm = self._data, self._arm
        # Images as LIBERO stores them and its policies read them: bottom row first.
        images = {camera: self._draw(camera) for camera in self._settings.cameras}
        return {
            "joint_states": data.qpos[arm.qpos_index].astype(np.float32),
            "ee_pos": data.site_xpos[arm.site].astype(np.float32),
            "ee_ori": arm.orientation().astype(np.float32),
            "gripper_states": data.qpos[arm.finger_index].astype(np.float32),
            **images,
        }

    def render(self, camera: str) -> NDArray[np.uint8]:
        return self._draw(camera)[::-1]

    def close(self) -> None:
        self._renderer = None
        self._stock.close()

    def draw_initial_state(self, seed: tuple[int, ...]) -> NDArray[np.float64]:
        """Draw object positions as LIBERO's reset does and let them come to rest; ends any episode."""
        self._draw_scene(int(np.random.default_rng(seed).integers(2**32)))
        self._settle()
        return np.concatenate([[self._data.time], self._data.qpos, self._data.qvel])

    def move_objects(
        self, initial_state: NDArray[np.float64], std_m: float, generator: np.random.Generator
    ) -> NDArray[np.float64]:
        """Return the state with every free object moved horizontally by `std_m` metres times a normal draw."""
        moved = np.array(initial_state, dtype=np.float64)
        for joint in range(self._model.njnt):
            if self._model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE:
                address = 1 + self._model.jnt_qposadr[joint]
                moved[address : address + 2] += std_m * generator.standard_normal(2)
        return moved

    def _draw_scene(self, seed: int) -> None:
        with simulator.seeded(seed):
            while True:
                try:
                    self._stock.reset()
                    break
                except simulator.randomization_error():  # LIBERO's own loop: some draws overlap
                    continue
        self._begin()

    def _set_state(self, state: NDArray[np.float64]) -> None:
        nq = self._model.nq
        self._data.time = state[0]
        self._data.qpos[:] = state[1 : 1 + nq]
        self._data.qvel[:] = state[1 + nq :]
        self._begin()

    def _begin(self) -> None:
        mujoco.mj_forward(self._model, self._data)
        self._goal, self._grip = self._arm.goal(np.zeros(6), None), np.zeros(2)

    def _settle(self) -> None:
        for _ in range(self._settings.settle_steps):
            self.step(np.zeros(7, dtype=np.float32))

    def _draw(self, camera: str) -> NDArray[np.uint8]:
        settings, model = self._settings, self._model
        if self._renderer is None:
            name = (settings.label, self._task)
            self._renderer = shared_renderer(
                name,
                model,
                size=settings.image_size,
                rendering=settings.rendering,
                hidden_groups=(COLLISION_SHAPES,),
            )
        self._stock._post_process()  # lights of switches
        return self._renderer.draw(model, self._data, model.camera(CAMERA_NAMES[camera]).id)


class _Arm:
    """Where the arm is in the simulator's arrays, and its controller."""

    def __init__(self, stock: Any):
        robot, model, data = stock.robots[0], stock.sim.model._model, stock.sim.data._data
        self._model, self._data = model, data
        self.site = robot.eef_site_id
        self.qpos_index = np.array(robot._ref_joint_pos_indexes)
        self.finger_index = np.array(robot._ref_gripper_joint_pos_indexes)
        qvel_index = np.array(robot._ref_joint_vel_indexes)
        self._finger_ctrl = np.array(robot._ref_joint_gripper_actuator_indexes)
        low, high = model.actuator_ctrlrange[self._finger_ctrl].T
        self._finger_middle, self._finger_reach = 0.5 * (high + low), 0.5 * (high - low)
        self._robot = (
            self.qpos_index,
            qvel_index,
            np.array(robot._ref_joint_actuator_indexes),
            _mass_index(model, qvel_index),
            np.array(robot.controller.initial_joint, dtype=np.float64),
            np.array(robot.torque_limits, dtype=np.float64),
        )
        self._jacobians = np.zeros((3, model.nv)), np.zeros((3, model.nv))

    def goal(
        self, action: NDArray[np.float64], orientation: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the hand's goal for an action; without rotation, it keeps `orientation`, or its present one."""
        delta = action * MAX_STEP
        position = self._data.site_xpos[self.site] + delta[:3]
        if orientation is None or delta[3:].any():
            orientation = rotation(delta[3:]) @ self._data.site_xmat[self.site].reshape(3, 3)
        return position, np.ascontiguousarray(orientation)

    def actuate(self, goal: tuple[NDArray[np.float64], NDArray[np.float64]], grip: NDArray[np.float64]) -> None:
        """Write the controls of arm and fingers."""
        data = self._data
        mujoco.mj_jacSite(self._model, data, *self._jacobians, self.site)
        hand = (data.site_xpos[self.site], data.site_xmat[self.site], *self._jacobians)
        write_controls(data.ctrl, goal, hand, (data.qpos, data.qvel, data.qfrc_bias, data.qM), self._robot)
        data.ctrl[self._finger_ctrl] = self._finger_middle + self._finger_reach * grip

    def orientation(self) -> NDArray[np.float64]:
        """Return the hand's orientation as a rotation vector (3,), in radians."""
        quaternion, vector = np.zeros(4), np.zeros(3)
        mujoco.mju_mat2Quat(quaternion, self._data.site_xmat[self.site])
        mujoco.mju_quat2Vel(vector, quaternion, 1.0)
        return vector


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


@functools.lru_cache(maxsize=4)
def drawing_environment(task: str, settings: Libero) -> LiberoEnvironment:
    """Return this process's environment for drawing and moving initial states of a task."""
    return LiberoEnvironment(task, settings)
