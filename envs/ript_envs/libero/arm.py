"""LIBERO's arm in the simulator's arrays: its controller's goal, its commands, and what it senses."""

import math
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import Observation
from ript_envs.libero.controller import MAX_STEP, rotation, write_controls, write_finger_controls


class Arm:
    """The arm of one environment."""

    def __init__(self, robot: Any, model: mujoco.MjModel, data: mujoco.MjData):
        """Look up the indices of robosuite's robot, and the simulator's arrays once and for all."""
        self._model, self._data, self._site = model, data, robot.eef_site_id
        self._quaternion = data.xquat[model.body(robot.robot_model.eef_name).id]
        qpos_index, qvel_index = np.array(robot._ref_joint_pos_indexes), np.array(robot._ref_joint_vel_indexes)
        finger_ctrl = np.array(robot._ref_joint_gripper_actuator_indexes)
        self._sensed = qpos_index, np.array(robot._ref_gripper_joint_pos_indexes)
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
        self._hand = data.site_xpos[self._site], data.site_xmat[self._site].reshape(3, 3), *self._jacobians
        self._state = data.qpos, data.qvel, data.qfrc_bias, data.qM, data.ctrl
        self._goal = np.zeros(3), np.eye(3)
        self._grip = np.zeros(2)

    def hold(self) -> None:
        """Make the present pose the goal, with the fingers half open."""
        self._goal = self._hand[0].copy(), self._hand[1].copy()
        self._grip[:] = 0.0

    def move_goal(self, action: NDArray[np.float64]) -> None:
        """Set the goal to where an action (6,) leads from here; without rotation, the goal's orientation stays."""
        delta = action * MAX_STEP
        orientation = rotation(delta[3:]) @ self._hand[1] if delta[3:].any() else self._goal[1]
        self._goal = self._hand[0] + delta[:3], orientation

    def actuate(self, direction: float) -> None:
        """Write the controls of arm and fingers; direction 1 closes the fingers, -1 opens them."""
        mujoco.mj_jacSite(self._model, self._data, *self._jacobians, self._site)
        write_controls(self._state, self._hand, self._robot, self._goal)
        write_finger_controls(self._state[4], self._fingers, self._grip, direction)

    def observe(self) -> Observation:
        """Return what the arm senses; see `STATE_DIMS`."""
        qpos = self._data.qpos
        return {
            "joint_states": qpos[self._sensed[0]].astype(np.float32),
            "ee_pos": self._hand[0].astype(np.float32),
            "ee_ori": _rotation_vector(self._quaternion).astype(np.float32),
            "gripper_states": qpos[self._sensed[1]].astype(np.float32),
        }


def _rotation_vector(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a rotation (4,) as a vector (3,), in radians, with an angle from 0 to 2 pi.

    As in LIBERO's demonstrations, the orientation of the hand is that of its body, a quarter turn from the site between
    the fingers. It points down, near pi, where another range would make the vector jump. Source: robosuite's `eef_quat`
    and `quat2axisangle`.
    """
    cosine, axis = quaternion[0], quaternion[1:]
    sine = float(np.linalg.norm(axis))
    return axis * (2.0 * math.atan2(sine, cosine) / sine) if sine > 0.0 else np.zeros(3)


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
