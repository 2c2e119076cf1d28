"""Noise on the places of LIBERO's objects, as when scenes are set up by hand.

An object keeps its height and what it stands on: it leaves no table and no drawer, and gets into no other object. What
stands on it moves with it.
"""

import mujoco
import numpy as np
from numpy.typing import NDArray

MAX_MOVES = 100
"""Draws until an object that has no room stays where it is."""

TOLERANCE_M = 0.003
"""What is below an object may be this much higher or lower, and the object this much deeper in what it touches."""

NUM_RAYS = 5
"""Rays along each side of the rectangle around an object."""

OUT_OF_THE_WAY_M = 100.0

SOLID = np.array([1, 1, 0, 0, 0, 0], dtype=np.uint8)
"""Groups of geoms that rays hit: what collides, and the floor."""


def move_objects(model: mujoco.MjModel, data: mujoco.MjData, *, std_m: float, generator: np.random.Generator) -> None:
    """Move every object with what stands on it horizontally, each by its own normal draw; changes `data`.

    Args:
        model: The scene.
        data: Its state.
        std_m: Standard deviation along each horizontal axis, in metres.
        generator: The source of randomness.
    """
    mujoco.mj_kinematics(model, data)
    free = model.jnt_type == mujoco.mjtJoint.mjJNT_FREE
    addresses = dict(zip(model.jnt_bodyid[free].tolist(), model.jnt_qposadr[free].tolist(), strict=True))
    bases = {body: _base(model, data, body, set(addresses)) for body in addresses}
    for base in dict.fromkeys(bases.values()):
        riders = [addresses[body] for body in addresses if bases[body] == base and body != base]
        data.qpos[[address + 2 for address in riders]] += OUT_OF_THE_WAY_M
        shift = _allowed_shift(model, data, base, std_m=std_m, generator=generator)
        for address in (addresses[base], *riders):
            data.qpos[address : address + 2] += shift
        data.qpos[[address + 2 for address in riders]] -= OUT_OF_THE_WAY_M
        mujoco.mj_kinematics(model, data)


def _allowed_shift(
    model: mujoco.MjModel, data: mujoco.MjData, body: int, *, std_m: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Draw a displacement (2,) after which a body stands on the same thing and in nothing; 0 if there is none."""
    place = slice(model.jnt_qposadr[model.body_jntadr[body]], model.jnt_qposadr[model.body_jntadr[body]] + 2)
    start = data.qpos[place].copy()
    depths = _depths(model, data, body)
    rectangle = _rectangle(model, data, body)
    before = _heights_below(model, data, body, rectangle)
    middle = len(before) // 2
    try:
        for _ in range(MAX_MOVES):
            shift = std_m * generator.standard_normal(2)
            below = _heights_below(model, data, body, rectangle + np.append(shift, 0.0))
            stands = abs(below[middle] - before[middle]) < TOLERANCE_M
            if stands and below.max() < before.max() + TOLERANCE_M:
                data.qpos[place] = start + shift
                if (_depths(model, data, body) < depths + TOLERANCE_M).all():
                    return shift
        return np.zeros(2)
    finally:
        data.qpos[place] = start


def _depths(model: mujoco.MjModel, data: mujoco.MjData, body: int) -> NDArray[np.float64]:
    """Return how deep a body is inside other objects, and inside what cannot move freely, in metres; at least 0."""
    mujoco.mj_fwdPosition(model, data)
    bodies = model.geom_bodyid[data.contact.geom]
    depths = np.zeros(2)
    for pair, distance in zip(bodies, data.contact.dist, strict=True):
        if body in pair:
            other = model.body_rootid[pair[0] if pair[1] == body else pair[1]]
            is_fixed = int(model.body_dofnum[other] != 6)
            depths[is_fixed] = max(depths[is_fixed], -distance)
    return depths


def _base(model: mujoco.MjModel, data: mujoco.MjData, body: int, free: set[int]) -> int:
    """Return the lowest object of the pile that an object is in."""
    while True:
        rectangle = _rectangle(model, data, body)
        _, geom = _ray_down(model, data, body, rectangle[len(rectangle) // 2])
        below = int(model.body_rootid[model.geom_bodyid[geom]]) if geom >= 0 else 0
        if below not in free or data.xpos[below, 2] >= data.xpos[body, 2]:
            return body
        body = below


def _rectangle(model: mujoco.MjModel, data: mujoco.MjData, body: int) -> NDArray[np.float64]:
    """Return a grid of points (rays, 3) over an object, at the height of its top; the middle one is its centre."""
    low, high = _bounds(model, data, body)
    x, y = (np.linspace(low[axis], high[axis], NUM_RAYS) for axis in (0, 1))
    grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    return np.column_stack([grid, np.full(len(grid), high[2])])


def _bounds(model: mujoco.MjModel, data: mujoco.MjData, body: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the corners of the upright box around what collides of a body, in metres."""
    shapes = [geom for geom in np.flatnonzero(model.geom_bodyid == body) if model.geom_contype[geom]]
    boxes, rotations = model.geom_aabb[shapes], data.geom_xmat[shapes].reshape(-1, 3, 3)
    centres = data.geom_xpos[shapes] + np.einsum("gij,gj->gi", rotations, boxes[:, :3])
    halves = np.einsum("gij,gj->gi", np.abs(rotations), boxes[:, 3:])
    return (centres - halves).min(axis=0), (centres + halves).max(axis=0)


def _heights_below(
    model: mujoco.MjModel, data: mujoco.MjData, body: int, points: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the height of what is below each point (rays, 3) beside a body itself, in metres; -inf for nothing."""
    return np.array([point[2] - _ray_down(model, data, body, point)[0] for point in points])


def _ray_down(model: mujoco.MjModel, data: mujoco.MjData, body: int, point: NDArray[np.float64]) -> tuple[float, int]:
    """Return distance and geom of the first thing below a point (3,), not of a body itself; inf and -1 for nothing."""
    geom = np.full(1, -1, dtype=np.int32)
    down = np.array([0.0, 0.0, -1.0])
    distance = mujoco.mj_ray(model, data, np.ascontiguousarray(point), down, SOLID, 1, body, geom)
    return (distance, int(geom[0])) if geom[0] >= 0 else (np.inf, -1)
