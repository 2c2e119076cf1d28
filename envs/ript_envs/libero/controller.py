"""The operational-space controller of LIBERO's arm, compiled.

The same arithmetic as robosuite 1.4's `OSC_POSE` with LIBERO's settings (fixed impedance, no interpolation, position
and orientation uncoupled). Source: Khatib 1987; robosuite/controllers/osc.py.
"""

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STIFFNESS = 150.0
"""Proportional gain of position and orientation; the damping is critical."""

DAMPING = 2.0 * math.sqrt(STIFFNESS)

NULLSPACE_STIFFNESS = 10.0
"""Proportional gain towards the arm's rest pose, in the null space of the task; the damping is critical."""

NULLSPACE_DAMPING = 2.0 * math.sqrt(NULLSPACE_STIFFNESS)

MAX_STEP = np.array([0.05, 0.05, 0.05, 0.5, 0.5, 0.5])
"""Displacement of the goal by an action of 1: metres, then radians."""


@numba.njit(cache=True)
def rotation(axis_angle: Array) -> Array:
    """Return the matrix (3, 3) of a rotation vector (3,) in radians."""
    angle = math.sqrt((axis_angle**2).sum())
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = axis_angle / angle
    sine, cosine = math.sin(angle), math.cos(angle)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + sine * cross + (1.0 - cosine) * (cross @ cross)


@numba.njit(cache=True)
def orientation_error(goal: Array, current: Array) -> Array:
    """Return the rotation vector (3,) from one orientation (3, 3) to another, for small angles."""
    error = np.zeros(3)
    for column in range(3):
        error += np.cross(current[:, column], goal[:, column])
    return 0.5 * error


@numba.njit(cache=True)
def arm_torques(
    goal: tuple[Array, Array],
    pose: tuple[Array, Array],
    joints: tuple[Array, Array, Array],
    jacobian: Array,
    mass: Array,
) -> Array:
    """Return the joint torques (7,) that pull the hand to its goal, without compensation of gravity.

    Args:
        goal: Position (3,) in metres and orientation (3, 3).
        pose: The hand's position (3,) and orientation (3, 3).
        joints: Positions (7,), velocities (7,) and rest positions (7,).
        jacobian: Of the hand (6, 7), position above orientation.
        mass: Mass matrix of the arm (7, 7).
    """
    position, velocity, rest = joints
    hand_velocity = jacobian @ velocity
    force = STIFFNESS * (goal[0] - pose[0]) - DAMPING * hand_velocity[:3]
    torque = STIFFNESS * orientation_error(goal[1], pose[1]) - DAMPING * hand_velocity[3:]
    inverse_mass = np.linalg.inv(mass)
    mobility = jacobian @ inverse_mass @ jacobian.T
    wrench = np.empty(6)
    wrench[:3] = np.linalg.pinv(mobility[:3, :3].copy()) @ force
    wrench[3:] = np.linalg.pinv(mobility[3:, 3:].copy()) @ torque
    pull = mass @ (NULLSPACE_STIFFNESS * (rest - position) - NULLSPACE_DAMPING * velocity)
    # (I - Jbar J)^T pull = pull - J^T (J M^-1 J^T)^-1 J M^-1 pull
    return jacobian.T @ (wrench - np.linalg.pinv(mobility) @ (jacobian @ (inverse_mass @ pull))) + pull


@numba.njit(cache=True)
def write_controls(
    ctrl: Array, goal: tuple[Array, Array], hand: tuple[Array, Array, Array, Array], state: Any, robot: Any
) -> None:
    """Write the torques of the arm's seven motors, gravity compensated and within their limits, to `ctrl`.

    Args:
        ctrl: The simulator's controls; only the arm's are written.
        goal: See `arm_torques`.
        hand: The hand's position (3,), orientation (9,), and Jacobians (3, nv) of both.
        state: The simulator's qpos, qvel, bias forces and sparse mass matrix.
        robot: Indices of the arm in these arrays, rest positions, and torque limits (2, 7).
    """
    qpos, qvel, bias, sparse_mass = state
    qpos_index, qvel_index, ctrl_index, mass_index, rest, limits = robot
    num = len(qvel_index)
    jacobian, mass = np.empty((6, num)), np.empty((num, num))
    for row in range(num):
        jacobian[:3, row], jacobian[3:, row] = hand[2][:, qvel_index[row]], hand[3][:, qvel_index[row]]
        for column in range(num):
            mass[row, column] = sparse_mass[mass_index[row, column]]
    torques = arm_torques(
        goal,
        (hand[0], hand[1].reshape(3, 3)),
        (qpos[qpos_index], qvel[qvel_index], rest),
        jacobian,
        mass,
    )
    for motor in range(num):
        torque = torques[motor] + bias[qvel_index[motor]]
        ctrl[ctrl_index[motor]] = min(max(torque, limits[0, motor]), limits[1, motor])
