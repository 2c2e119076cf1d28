"""The simulator of a LIBERO task, shared by all environments of that task in a process.

LIBERO's own environment takes seconds to build and most of a gigabyte. All that differs between two of one task is the
simulator's state, and the place of furniture that cannot move: these are kept per environment and swapped in.
"""

import weakref
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from ript_envs.libero import scenery, simulator
from ript_envs.libero.benchmark import Libero
from ript_envs.libero.controller import MAX_STEP, rotation, write_controls

Pose = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Position (3,) in metres and orientation (3, 3)."""


class Scene:
    """LIBERO's own environment of a task, its compiled model, and the arm in it."""

    def __init__(self, task: str, settings: Libero):
        """Build it; takes seconds."""
        self.stock = simulator.build(settings.suite, task, perturbation=settings.perturbation)
        self.model: mujoco.MjModel = self.stock.sim.model._model
        if settings.simplified_meshes:
            scenery.simplify_meshes(self.model)
        if settings.small_textures:
            scenery.shrink_textures(self.model)
        self.arm = Arm(self.stock)
        self._furniture = np.array([self.stock.obj_body_id[name] for name in self.stock.fixtures_dict], dtype=int)
        self._shown: State | None = None

    def show(self, state: "State") -> None:
        """Let LIBERO's environment and the model be those of `state`."""
        if self._shown is not state:
            self._shown = state
            self.stock.sim.data._data = state.data
            self.model.body_pos[self._furniture], self.model.body_quat[self._furniture] = state.furniture

    def draw(self, state: "State", seed: int) -> None:
        """Place all objects and furniture at random, as LIBERO's reset does."""
        self.show(state)
        with simulator.seeded(seed):
            while True:
                try:
                    self.stock.reset()
                    break
                except simulator.randomization_error():  # LIBERO's own loop: some draws overlap
                    continue
        state.furniture = self.furniture

    @property
    def furniture(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Positions (n, 3) and orientations (n, 4) of the furniture in the model."""
        return self.model.body_pos[self._furniture].copy(), self.model.body_quat[self._furniture].copy()


class State:
    """What differs between two environments of one task."""

    def __init__(self, scene: Scene):
        self.data = mujoco.MjData(scene.model)
        self.furniture = scene.furniture


_SCENES: "weakref.WeakValueDictionary[tuple[object, ...], Scene]" = weakref.WeakValueDictionary()


def shared_scene(task: str, settings: Libero) -> Scene:
    """Return this process's scene of a task, which is freed with its last environment."""
    key = scene_key(task, settings)
    scene = _SCENES.get(key)
    if scene is None:
        scene = _SCENES[key] = Scene(task, settings)
    return scene


def scene_key(task: str, settings: Libero) -> tuple[object, ...]:
    """Return what identifies the compiled model of a task."""
    return settings.label, task, settings.simplified_meshes, settings.small_textures


class Arm:
    """Where the arm is in the simulator's arrays, and its controller."""

    def __init__(self, stock: Any):
        robot, model = stock.robots[0], stock.sim.model._model
        self._model = model
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

    def goal(self, data: mujoco.MjData, action: NDArray[np.float64], orientation: NDArray[np.float64] | None) -> Pose:
        """Return the hand's goal for an action; without rotation, it keeps `orientation`, or its present one."""
        delta = action * MAX_STEP
        position = data.site_xpos[self.site] + delta[:3]
        if orientation is None or delta[3:].any():
            orientation = rotation(delta[3:]) @ data.site_xmat[self.site].reshape(3, 3)
        return position, np.ascontiguousarray(orientation)

    def actuate(self, data: mujoco.MjData, goal: Pose, grip: NDArray[np.float64]) -> None:
        """Write the controls of arm and fingers."""
        mujoco.mj_jacSite(self._model, data, *self._jacobians, self.site)
        hand = (data.site_xpos[self.site], data.site_xmat[self.site], *self._jacobians)
        write_controls(data.ctrl, goal, hand, (data.qpos, data.qvel, data.qfrc_bias, data.qM), self._robot)
        data.ctrl[self._finger_ctrl] = self._finger_middle + self._finger_reach * grip

    def orientation(self, data: mujoco.MjData) -> NDArray[np.float64]:
        """Return the hand's orientation as a rotation vector (3,), in radians."""
        quaternion, vector = np.zeros(4), np.zeros(3)
        mujoco.mju_mat2Quat(quaternion, data.site_xmat[self.site])
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
