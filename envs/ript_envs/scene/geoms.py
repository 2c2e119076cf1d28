"""What a MuJoCo scene consists of, as arrays, and boxes that its geoms are surely within."""

from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

PLANE, CAPSULE, MESH = (
    int(kind) for kind in (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_MESH)
)

SOLIDS = tuple(
    int(kind)
    for kind in (
        mujoco.mjtGeom.mjGEOM_SPHERE,
        mujoco.mjtGeom.mjGEOM_CAPSULE,
        mujoco.mjtGeom.mjGEOM_ELLIPSOID,
        mujoco.mjtGeom.mjGEOM_CYLINDER,
        mujoco.mjtGeom.mjGEOM_BOX,
    )
)
"""Shapes whose extent is their size."""

UNBOUNDED = 1e6
"""Half a side of the box of a geom whose extent is not known, in metres."""


@dataclass(frozen=True)
class Geoms:
    """The N geoms of a scene, in its order; lengths in metres.

    Attributes:
        kinds: `mjtGeom`, int (N,).
        data: Display list among those of its kind, int (N,).
        poses: Position, rotation matrix by rows, and size, float32 (N, 15), as they are drawn.
        casts: Whether it casts shadows, (N,).
        opacities: (N,).
        reflectances: (N,).
        centres: Of the boxes, (N, 3).
        halves: Half their sides, along the columns of `axes`, (N, 3).
        axes: Rotation matrices, (N, 3, 3).
    """

    kinds: NDArray[np.int64]
    data: NDArray[np.int64]
    poses: NDArray[np.float32]
    casts: NDArray[np.bool_]
    opacities: NDArray[np.float64]
    reflectances: NDArray[np.float64]
    centres: NDArray[np.float64]
    halves: NDArray[np.float64]
    axes: NDArray[np.float64]


def read_geoms(model: mujoco.MjModel, scene: mujoco.MjvScene) -> Geoms:
    """Read a scene of a model; it is read once per picture, so arrays are made of all geoms at once."""
    geoms = scene.geoms[: scene.ngeom]
    poses = np.array([np.concatenate((geom.pos, geom.mat.ravel(), geom.size)) for geom in geoms], np.float32)
    numbers = np.array([(geom.type, geom.dataid, geom.objtype, geom.objid, geom.category) for geom in geoms], np.int64)
    looks = np.array([(geom.rgba[3], geom.reflectance) for geom in geoms], np.float64)
    poses, numbers, looks = poses.reshape(-1, 15), numbers.reshape(-1, 5), looks.reshape(-1, 2)
    kinds, data, owners, owner_ids, categories = numbers.T
    centres, halves = poses[:, :3].astype(np.float64), poses[:, 12:].astype(np.float64)
    axes = poses[:, 3:12].reshape(-1, 3, 3).astype(np.float64)
    halves[kinds == CAPSULE, 2] += 2 * halves[kinds == CAPSULE, 0]
    is_mesh = (kinds == MESH) & (owners == mujoco.mjtObj.mjOBJ_GEOM)
    boxes = model.geom_aabb[owner_ids[is_mesh]]
    centres[is_mesh] += np.einsum("nij,nj->ni", axes[is_mesh], boxes[:, :3])
    halves[is_mesh] = boxes[:, 3:]
    halves[~is_mesh & ~np.isin(kinds, SOLIDS)] = UNBOUNDED
    casts = (categories != mujoco.mjtCatBit.mjCAT_DECOR) & (kinds != mujoco.mjtGeom.mjGEOM_LINE)
    return Geoms(kinds, data, poses, casts, looks[:, 0], looks[:, 1], centres, halves, axes)


def extents(geoms: Geoms, directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far the boxes reach from their centres along directions (D, 3), times their lengths, (N, D)."""
    return np.einsum("nid,ni->nd", np.abs(np.einsum("nji,dj->nid", geoms.axes, directions)), geoms.halves)
