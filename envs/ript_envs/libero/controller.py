"""The operational-space controller of LIBERO's arm, compiled.

The same arithmetic as robosuite 1.4's `OSC_POSE` with LIBERO's settings (fixed impedance, no interpolation, position
and orientation uncoupled). Source: Khatib 1987; robosuite/controllers/osc.py. It is written in loops: compiling NumPy's
linear algebra takes ten seconds, and decomposing matrices of six rows by it most of a step.
"""

import math
from collections.abc import Callable
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

GRIPPER_SPEED = 0.01
"""Change of the fingers' commands, in [-1, 1], in a simulator step."""

MIN_PIVOT = 1e-12
"""Stretched out, the arm cannot move in every direction: then torques are large (and limited) instead of no numbers."""


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function, once per machine: in a folder that can be written, the machine code is kept for others."""
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # no such folder: once per process
        return numba.njit(function)


def rotation(axis_angle: Array) -> Array:
    """Return the matrix (3, 3) of a rotation vector (3,) in radians, in single precision where robosuite uses it."""
    angle = math.sqrt(float(axis_angle @ axis_angle))
    if angle == 0.0:
        return np.eye(3)
    quaternion = np.array([math.cos(angle / 2.0), *(axis_angle / angle * math.sin(angle / 2.0))], dtype=np.float32)
    quaternion *= np.sqrt(2.0 / np.float64(quaternion @ quaternion))
    products = np.outer(quaternion, quaternion)
    wx, wy, wz = products[0, 1:]
    xy, xz, yz = products[1, 2], products[1, 3], products[2, 3]
    x, y, z = products.diagonal()[1:].astype(np.float64)
    return np.array(
        [
            [1.0 - y - z, xy - wz, xz + wy],
            [xy + wz, 1.0 - x - z, yz - wx],
            [xz - wy, yz + wx, 1.0 - x - y],
        ],
        dtype=np.float64,
    )


@compiled
def cholesky(matrix: Array, begin: int, end: int) -> Array:
    """Return the lower triangular factor of a block on the diagonal of a symmetric positive definite matrix."""
    factor = np.empty((end - begin, end - begin))
    for row in range(end - begin):
        for column in range(row + 1):
            total = matrix[begin + row, begin + column]
            for k in range(column):
                total -= factor[row, k] * factor[column, k]
            if row == column:
                factor[row, row] = math.sqrt(max(total, MIN_PIVOT))
            else:
                factor[row, column] = total / factor[column, column]
    return factor


@compiled
def solve(matrix: Array, vector: Array, begin: int, end: int) -> Array:
    """Solve the linear system (end - begin,) of a block on the diagonal of a matrix; see `cholesky`."""
    size, factor = end - begin, cholesky(matrix, begin, end)
    x = np.empty(size)
    for row in range(size):
        x[row] = vector[begin + row]
        for k in range(row):
            x[row] -= factor[row, k] * x[k]
        x[row] /= factor[row, row]
    for row in range(size - 1, -1, -1):
        for k in range(row + 1, size):
            x[row] -= factor[k, row] * x[k]
        x[row] /= factor[row, row]
    return x


@compiled
def mobility(jacobian: Array, mass: Array) -> Array:
    """Return J M^-1 J^T (6, 6), the inverse of the inertia that the hand feels."""
    num_rows, num_joints = jacobian.shape
    factor = cholesky(mass, 0, num_joints)
    half = np.empty((num_rows, num_joints))  # L^-1 J^T, where L L^T = M
    result = np.empty((num_rows, num_rows))
    for row in range(num_rows):
        for joint in range(num_joints):
            total = jacobian[row, joint]
            for k in range(joint):
                total -= factor[joint, k] * half[row, k]
            half[row, joint] = total / factor[joint, joint]
        for column in range(row + 1):
            total = 0.0
            for joint in range(num_joints):
                total += half[row, joint] * half[column, joint]
            result[row, column] = result[column, row] = total
    return result


@compiled
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
    num = len(velocity)
    pull = np.empty(num)  # joint accelerations
    wanted, pulled = np.zeros(6), np.zeros(6)  # accelerations of the hand
    for joint in range(num):
        pull[joint] = NULLSPACE_STIFFNESS * (rest[joint] - position[joint]) - NULLSPACE_DAMPING * velocity[joint]
        for row in range(6):
            wanted[row] -= DAMPING * jacobian[row, joint] * velocity[joint]
            pulled[row] += jacobian[row, joint] * pull[joint]
    for axis in range(3):
        one, two = (axis + 1) % 3, (axis + 2) % 3
        wanted[axis] += STIFFNESS * (goal[0][axis] - pose[0][axis])
        for k in range(3):  # half the sum of the cross products of the columns: the rotation vector, if it is small
            turn = pose[1][one, k] * goal[1][two, k] - pose[1][two, k] * goal[1][one, k]
            wanted[3 + axis] += 0.5 * STIFFNESS * turn
    inverse_inertia = mobility(jacobian, mass)
    force, torque = solve(inverse_inertia, wanted, 0, 3), solve(inverse_inertia, wanted, 3, 6)
    taken = solve(inverse_inertia, pulled, 0, 6)  # what of the pull would move the hand
    result = np.zeros(num)
    for joint in range(num):
        for axis in range(3):
            result[joint] += jacobian[axis, joint] * (force[axis] - taken[axis])
            result[joint] += jacobian[3 + axis, joint] * (torque[axis] - taken[3 + axis])
        for k in range(num):
            result[joint] += mass[joint, k] * pull[k]
    return result


@compiled
def write_controls(state: Any, hand: Any, robot: Any, goal: tuple[Array, Array]) -> None:
    """Write the torques of the arm's seven motors, gravity compensated and within their limits, to the controls.

    Args:
        state: The simulator's qpos, qvel, bias forces, sparse mass matrix, and controls.
        hand: The hand's position (3,), orientation (3, 3), and Jacobians (3, nv) of both.
        robot: Indices of the arm in these arrays, rest positions, and torque limits (2, 7).
        goal: See `arm_torques`.
    """
    qpos, qvel, bias, sparse_mass, ctrl = state
    hand_position, hand_orientation, position_jacobian, orientation_jacobian = hand
    qpos_index, qvel_index, ctrl_index, mass_index, rest, limits = robot
    num = len(qvel_index)
    jacobian, mass = np.empty((6, num)), np.empty((num, num))
    position, velocity = np.empty(num), np.empty(num)
    for joint in range(num):
        dof = qvel_index[joint]
        position[joint], velocity[joint] = qpos[qpos_index[joint]], qvel[dof]
        for axis in range(3):
            jacobian[axis, joint] = position_jacobian[axis, dof]
            jacobian[3 + axis, joint] = orientation_jacobian[axis, dof]
        for k in range(num):
            mass[joint, k] = sparse_mass[mass_index[joint, k]]
    pose = hand_position, hand_orientation
    torques = arm_torques(goal, pose, (position, velocity, rest), jacobian, mass)
    for joint in range(num):
        torque = torques[joint] + bias[qvel_index[joint]]
        ctrl[ctrl_index[joint]] = min(max(torque, limits[0, joint]), limits[1, joint])


@compiled
def write_finger_controls(ctrl: Array, fingers: Any, grip: Array, direction: float) -> None:
    """Move the commands of the two fingers one simulator step, and write their controls.

    Args:
        ctrl: The simulator's controls.
        fingers: Indices of the fingers in `ctrl`, and their ranges (2, 2).
        grip: The commands (2,) in [-1, 1], which are changed; the fingers' signs differ.
        direction: 1 closes, -1 opens, 0 stays.
    """
    index, ranges = fingers
    for finger in range(2):
        sign = -1.0 if finger == 0 else 1.0
        grip[finger] = min(max(grip[finger] + sign * GRIPPER_SPEED * direction, -1.0), 1.0)
        low, high = ranges[finger]
        ctrl[index[finger]] = 0.5 * (high + low) + 0.5 * (high - low) * grip[finger]
