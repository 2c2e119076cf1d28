"""Simplified meshes and small textures: what is drawn changes little, and what collides not at all."""

import mujoco
import numpy as np
import pytest

from ript_envs.libero.scenery import MAX_FACES, TEXTURE_SIZE, shrink_textures, simplify_meshes
from ript_envs.rendering import OffscreenRenderer

pytestmark = pytest.mark.sim

NUM_RINGS, NUM_SECTORS = 60, 90


def ball() -> str:
    """Return the vertices and triangles of a fine sphere as attributes of a mesh."""
    polar, around = np.meshgrid(
        np.linspace(0.02, np.pi - 0.02, NUM_RINGS), np.linspace(0, 2 * np.pi, NUM_SECTORS, endpoint=False)
    )
    points = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], axis=-1)
    index = np.arange(NUM_RINGS * NUM_SECTORS).reshape(NUM_SECTORS, NUM_RINGS)
    here, next_sector = index[:, :-1], np.roll(index, -1, axis=0)[:, :-1]
    triangles = [*zip(here.flat, (here + 1).flat, next_sector.flat, strict=True)]
    triangles += zip(next_sector.flat, (here + 1).flat, (next_sector + 1).flat, strict=True)
    vertex = " ".join(f"{value:.4f}" for value in 0.1 * points.ravel())
    return f'vertex="{vertex}" face="{" ".join(str(corner) for triangle in triangles for corner in triangle)}"'


@pytest.fixture
def model() -> mujoco.MjModel:
    """A ball that falls on a slope: drawn by one mesh, colliding by another of the same shape."""
    return mujoco.MjModel.from_xml_string(
        f"""
        <mujoco>
          <asset>
            <texture name="tiles" type="2d" builtin="checker" width="1000" height="600" rgb1="1 1 1" rgb2="0 0 0"/>
            <texture name="sky" type="skybox" builtin="gradient" width="512" height="3072" rgb1="0 0 1" rgb2="1 1 1"/>
            <material name="tiles" texture="tiles"/>
            <mesh name="drawn" {ball()}/>
            <mesh name="solid" {ball()}/>
          </asset>
          <worldbody>
            <light pos="0 0 2"/>
            <camera name="front" pos="0 -1 0.3" euler="80 0 0"/>
            <geom type="plane" size="1 1 0.1" euler="0 10 0" material="tiles"/>
            <body pos="0 0 0.3">
              <freejoint/>
              <geom type="mesh" mesh="drawn" contype="0" conaffinity="0" rgba="1 0.3 0.2 1"/>
              <geom type="mesh" mesh="solid" group="3"/>
            </body>
          </worldbody>
        </mujoco>
        """
    )


def picture(model: mujoco.MjModel) -> np.ndarray:
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return OffscreenRenderer(model, size=96, rendering="full").draw(model, data, 0).astype(float)


def resting_place(model: mujoco.MjModel) -> np.ndarray:
    data = mujoco.MjData(model)
    for _ in range(400):
        mujoco.mj_step(model, data)
    return data.qpos.copy()


def test_simplified_meshes_look_nearly_the_same_and_those_that_collide_are_not_touched(model: mujoco.MjModel) -> None:
    image, place, num_solid = picture(model), resting_place(model), model.mesh("solid").facenum
    assert num_solid > 10 * MAX_FACES
    simplify_meshes(model)
    assert MAX_FACES / 4 < model.mesh("drawn").facenum <= MAX_FACES
    assert model.mesh("solid").facenum == num_solid
    assert 0 < np.abs(picture(model) - image).mean() < 2
    np.testing.assert_array_equal(resting_place(model), place)
    before = model.mesh_face.copy()
    simplify_meshes(model)
    np.testing.assert_array_equal(model.mesh_face, before)


def test_small_textures_look_nearly_the_same_and_their_pixels_are_means(model: mujoco.MjModel) -> None:
    image, tiles = picture(model), model.texture("tiles")
    corner = model.tex_data[: 4 * 1000 * 3].reshape(4, 1000, 3)[:, :4].mean(axis=(0, 1))
    shrink_textures(model)
    assert (tiles.width, tiles.height) == (250, 150)
    np.testing.assert_allclose(model.tex_data[:3], corner, atol=0.5)
    assert (model.texture("sky").width, model.texture("sky").height) == (TEXTURE_SIZE, 6 * TEXTURE_SIZE)
    assert np.abs(picture(model) - image).mean() < 2
