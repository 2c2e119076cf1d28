"""Leaves out of a scene what no pixel of its picture shows: geoms out of view, and reflections in a mirror out of view.

MuJoCo draws all geoms in every pass. A triangle that is wholly outside the view covers no pixel, whatever draws it.
"""

from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from ript_envs.scene.geoms import PLANE, Geoms, extents

BOX = int(mujoco.mjtGeom.mjGEOM_BOX)
NONE = int(mujoco.mjtGeom.mjGEOM_NONE)

OPAQUE = 0.995
"""MuJoCo's limit on the opacity of a geom that is drawn, mirrors and casts shadows as an opaque one."""

MARGIN_M = 1e-3
"""A geom is out of view if it is that far from it: much more than the rounding of any matrix."""


@dataclass(frozen=True)
class Camera:
    """A camera's position (3,) in metres, and its directions right, up and forward, (3, 3), of length 1."""

    position: NDArray[np.float64]
    directions: NDArray[np.float64]


@dataclass(frozen=True)
class Frustum:
    """What is seen from a point: all points x with normals · (x - apex) <= offsets.

    Attributes:
        apex: (3,), in metres.
        normals: (D, 3).
        offsets: (D,).
    """

    apex: NDArray[np.float64]
    normals: NDArray[np.float64]
    offsets: NDArray[np.float64]


def leave_out_unseen(scene: mujoco.MjvScene, geoms: Geoms, *, draws_shadows: bool) -> None:
    """Take from a scene what the picture of its camera does not need.

    Args:
        scene: The scene, of square pictures.
        geoms: What it consists of.
        draws_shadows: Whether MuJoCo will draw the shadow map, to which geoms out of view belong, too.
    """
    lens = mujoco.mjv_averageCamera(scene.camera[0], scene.camera[1])
    if lens.orthographic:
        scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = True
        return
    forward, up = np.array(lens.forward, np.float64), np.array(lens.up, np.float64)
    camera = Camera(np.array(lens.pos, np.float64), np.stack([np.cross(forward, up), up, forward]))
    half_width = lens.frustum_width or (lens.frustum_top - lens.frustum_bottom) / 2
    lowest = np.array([lens.frustum_center - half_width, lens.frustum_bottom]) / lens.frustum_near
    highest = np.array([lens.frustum_center + half_width, lens.frustum_top]) / lens.frustum_near
    hidden = _outside(geoms, _view(camera, lowest, highest))
    mirror = _mirror(geoms, camera.position)
    is_seen = mirror is not None and not hidden[mirror]
    # Without the flag, the mirror itself is drawn as with it: first, and added to black.
    scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = is_seen
    if draws_shadows:
        return
    if is_seen:
        assert mirror is not None
        hidden &= _outside(geoms, _in_the_mirror(geoms, mirror, camera, lowest, highest))
    for index in np.flatnonzero(hidden & (geoms.opacities >= OPAQUE)):
        scene.geoms[index].type = NONE


def _view(camera: Camera, lowest: NDArray[np.float64], highest: NDArray[np.float64]) -> Frustum:
    """Return what a camera sees between the lowest and the highest tangents, (2,), to the right and upwards.

    The far end does not matter, since nothing is beyond it.
    """
    *sides, forward = camera.directions
    normals = [-forward]
    for side, low, high in zip(sides, lowest, highest, strict=True):
        normals += [side - high * forward, low * forward - side]
    return Frustum(camera.position, np.stack(normals), np.zeros(len(normals)))


def _outside(geoms: Geoms, seen: Frustum) -> NDArray[np.bool_]:
    """Return which geoms' boxes are wholly beyond one of the planes, (N,)."""
    nearest = (geoms.centres - seen.apex) @ seen.normals.T - extents(geoms, seen.normals)
    return np.asarray((nearest > seen.offsets + MARGIN_M * np.linalg.norm(seen.normals, axis=1)).any(axis=1))


def _mirror(geoms: Geoms, apex: NDArray[np.float64]) -> int | None:
    """Return the first opaque plane or box with reflectance: MuJoCo reflects in that alone."""
    is_behind = np.einsum("ni,ni->n", apex - geoms.poses[:, :3], geoms.axes[:, :, 2]) < 0
    is_opaque = (geoms.opacities >= OPAQUE) & ~((geoms.kinds == PLANE) & is_behind)
    found = np.flatnonzero(np.isin(geoms.kinds, (PLANE, BOX)) & is_opaque & (geoms.reflectances > 0))
    return int(found[0]) if len(found) else None


def _in_the_mirror(
    geoms: Geoms, mirror: int, camera: Camera, lowest: NDArray[np.float64], highest: NDArray[np.float64]
) -> Frustum:
    """Return what is seen in the upper face of a plane or box: the view from behind it, of what is above it."""
    normal, (width, length, height) = geoms.axes[mirror, :, 2], geoms.poses[mirror, 12:]
    is_box = geoms.kinds[mirror] == BOX
    face = geoms.poses[mirror, :3] + (height * normal if is_box else 0.0)
    if min(width, length) > 0:  # else it is infinite
        corners = np.array([(x * width, y * length, 0.0) for x in (-1, 1) for y in (-1, 1)])
        right_up_forward = (face + corners @ geoms.axes[mirror].T - camera.position) @ camera.directions.T
        if right_up_forward[:, 2].min() > MARGIN_M:
            tangents = right_up_forward[:, :2] / right_up_forward[:, 2:]
            lowest, highest = np.maximum(lowest, tangents.min(axis=0)), np.minimum(highest, tangents.max(axis=0))
    view = _view(camera, lowest, highest)
    above = float((camera.position - face) @ normal)
    apex = camera.position - 2 * above * normal
    normals = view.normals - 2 * np.outer(view.normals @ normal, normal)
    return Frustum(apex, np.vstack([normals, -normal]), np.append(view.offsets, -above))
