"""Cheaper scenery for training from scratch without a GPU: fewer triangles and smaller textures in a compiled model.

What the arm and the objects collide with, weigh and measure is not touched.
"""

import mujoco
import numpy as np
from numpy.typing import NDArray

MAX_FACES = 800
"""Triangles of a simplified mesh; LIBERO's have up to 66,000, and a CPU takes 0.2 ms for 1,000."""

MAX_CELLS = 64
"""Limit on the cells along the longest side of a mesh, in which vertices are merged."""

TEXTURE_SIZE = 256
"""Side of a small texture, in pixels, at most; LIBERO's have up to 4,096."""


def simplify_meshes(model: mujoco.MjModel) -> None:
    """Leave at most about `MAX_FACES` triangles of each mesh that is only drawn.

    Vertices in the same cell of a grid become one, and triangles without area go. Source: Rossignac and Borrel 1993.
    """
    collides = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    is_mesh = model.geom_type == mujoco.mjtGeom.mjGEOM_MESH
    for mesh in set(model.geom_dataid[is_mesh & ~collides]) - set(model.geom_dataid[is_mesh & collides]):
        if model.mesh_facenum[mesh] > MAX_FACES:
            _simplify(model, mesh)


def shrink_textures(model: mujoco.MjModel) -> None:
    """Shrink each texture to at most `TEXTURE_SIZE` pixels along its width; a pixel is the mean of those it covers."""
    for texture in range(model.ntex):
        width, height, channels = model.tex_width[texture], model.tex_height[texture], model.tex_nchannel[texture]
        factor = -(-width // TEXTURE_SIZE)
        num_images = height // width if model.tex_type[texture] != mujoco.mjtTexture.mjTEXTURE_2D else 1  # of a cube
        if factor == 1:
            continue
        rows, columns = height // num_images // factor, width // factor
        start = model.tex_adr[texture]
        images = model.tex_data[start : start + width * height * channels].reshape(num_images, -1, width, channels)
        whole = images[:, : rows * factor, : columns * factor]
        blocks = whole.reshape(num_images, rows, factor, columns, factor, channels)
        small = blocks.mean(axis=(2, 4)).round().astype(np.uint8)
        model.tex_data[start : start + small.size] = small.ravel()
        model.tex_width[texture], model.tex_height[texture] = columns, num_images * rows


def _simplify(model: mujoco.MjModel, mesh: int) -> None:
    """Rewrite a mesh's triangles with the finest grid that leaves few enough; the vertices stay where they are."""
    begin, num_vertices = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    vertices = model.mesh_vert[begin : begin + num_vertices]
    first = model.mesh_faceadr[mesh]
    before = slice(first, first + model.mesh_facenum[mesh])
    faces = model.mesh_face[before].copy()
    coarse, fine = 1, MAX_CELLS
    while coarse < fine:
        cells = (coarse + fine + 1) // 2
        coarse, fine = (cells, fine) if len(_merge(vertices, faces, cells)[1]) <= MAX_FACES else (coarse, cells - 1)
    merged, kept = _merge(vertices, faces, coarse)
    after = slice(first, first + len(kept))
    model.mesh_face[after] = merged[kept]
    # Normals and texture of a triangle's corners stay its own, so that edges and seams stay sharp.
    model.mesh_facenormal[after] = model.mesh_facenormal[before][kept]
    model.mesh_facetexcoord[after] = model.mesh_facetexcoord[before][kept]
    model.mesh_facenum[mesh] = len(kept)


def _merge(
    vertices: NDArray[np.float32], faces: NDArray[np.int32], cells: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Replace each vertex of a mesh by one of its cell.

    Returns:
        The triangles with their new vertices, and the indices of those that have an area, each once.
    """
    low = vertices.min(axis=0)
    cell = np.floor((vertices - low) * (cells / (vertices - low).max())).astype(np.int64)
    _, chosen, label = np.unique(cell @ (1, 4096, 4096**2), return_index=True, return_inverse=True)
    merged = chosen[label][faces]
    a, b, c = merged.T
    proper = np.flatnonzero((a != b) & (b != c) & (c != a))
    # Equal only with the same front: both sides of a thin wall are drawn.
    begin = merged[proper].argmin(axis=1)
    a, b, c = (merged[proper, (begin + corner) % 3] for corner in range(3))
    _, kept = np.unique((a * len(vertices) + b) * len(vertices) + c, return_index=True)
    return merged, proper[np.sort(kept)]
