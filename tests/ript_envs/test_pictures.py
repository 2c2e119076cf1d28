"""What the renderer spares MuJoCo changes no bit of a picture of full quality."""

import importlib
from typing import Any

import mujoco
import numpy as np
import pytest
from numpy.typing import NDArray

from experiments.benchmarks.pictures import StockRenderer
from ript_envs.contract import Environment
from ript_envs.libero.benchmark import Libero
from ript_envs.libero.environment import CAMERA_NAMES, COLLISION_SHAPES, LiberoEnvironment
from ript_envs.metaworld.benchmark import MetaWorld
from ript_envs.metaworld.environment import MetaWorldEnvironment
from ript_envs.rendering import OffscreenRenderer
from ript_envs.scene.culling import NONE
from ript_envs.scene.geoms import Geoms, read_geoms
from ript_envs.scene.shadow_map import KeptShadowMap, look_along

pytestmark = pytest.mark.sim

SIZE = 64

CAMERAS = ("corner2", "topview", "gripperPOV")
"""From the side, from above, and from the hand."""


def metaworld(task: str, seed: int = 0) -> MetaWorldEnvironment:
    benchmark = MetaWorld()
    environment = benchmark.make(task)
    assert isinstance(environment, MetaWorldEnvironment)
    environment.reset(benchmark.draw_initial_state(task, (seed,)))
    return environment


def act(environment: Environment, generator: np.random.Generator, num_actions: int, num_steps: int = 8) -> None:
    for _ in range(num_steps):
        environment.step(generator.uniform(-1, 1, num_actions).astype(np.float32))


def spared(model: mujoco.MjModel, hidden_groups: tuple[int, ...] = ()) -> OffscreenRenderer:
    """Our renderer, where there is no GPU: one draws everything."""
    renderer = OffscreenRenderer(model, size=SIZE, rendering="full", hidden_groups=hidden_groups)
    if not renderer._is_slow:
        pytest.skip("a GPU is spared nothing")
    return renderer


def shadow_map(renderer: OffscreenRenderer) -> NDArray[np.uint32]:
    gl: Any = importlib.import_module("OpenGL.GL")
    gl.glBindTexture(gl.GL_TEXTURE_2D, renderer._gl_context.shadowTex)
    depths = gl.glGetTexImage(gl.GL_TEXTURE_2D, 0, gl.GL_DEPTH_COMPONENT, gl.GL_UNSIGNED_INT)
    return np.asarray(depths)


@pytest.mark.parametrize("task", ["pick-place-v3", "drawer-open-v3", "coffee-push-v3", "peg-insert-side-v3"])
def test_metaworlds_pictures_equal_mujocos(task: str) -> None:
    environment, generator = metaworld(task), np.random.default_rng(0)
    model, data = environment._sim.model, environment._sim.data
    ours, stock = spared(model), StockRenderer(model, SIZE)
    seen = set()
    for _ in range(4):
        for camera in CAMERAS:
            image = ours.draw(model, data, model.camera(camera).id)
            np.testing.assert_array_equal(image, stock.draw(model, data, model.camera(camera).id))
            seen.add(image.tobytes())
        act(environment, generator, 4)
    assert len(seen) == 4 * len(CAMERAS)


def test_metaworlds_shadow_map_equals_mujocos_where_two_environments_take_turns() -> None:
    environments, generator = [metaworld("hammer-v3", seed) for seed in range(2)], np.random.default_rng(0)
    model = environments[0]._sim.model
    ours, stock = spared(model), StockRenderer(model, SIZE)
    camera = model.camera("corner2").id
    for index in range(6):
        environment = environments[index % 2]
        act(environment, generator, 4)
        with environment._use:
            image, theirs = (renderer.draw(model, environment._sim.data, camera) for renderer in (ours, stock))
        np.testing.assert_array_equal(image, theirs)
        if index % 2:
            assert (shadow_map(ours) == shadow_map(stock)).all()
    assert ours._shadows is not None, "the first picture was not equal"


@pytest.mark.parametrize("suite", ["libero_goal", "libero_10"])
def test_liberos_pictures_equal_mujocos_and_the_hands_leave_most_of_the_scene_out(suite: Any) -> None:
    benchmark, generator = Libero(suite), np.random.default_rng(0)
    task = benchmark.tasks[0]
    environment = benchmark.make(task)
    assert isinstance(environment, LiberoEnvironment)
    environment.reset(benchmark.evaluation_states(task)[0])
    model, data = environment._model, environment._data
    ours = spared(model, (COLLISION_SHAPES,))
    stock = StockRenderer(model, SIZE, (COLLISION_SHAPES,))
    num_left_out = []
    for _ in range(3):
        for camera in CAMERA_NAMES.values():
            index = model.camera(camera).id
            np.testing.assert_array_equal(ours.draw(model, data, index), stock.draw(model, data, index))
        num_left_out.append(sum(geom.type == NONE for geom in ours._scene.geoms[: ours._scene.ngeom]))
        act(environment, generator, 7)
    assert min(num_left_out) > 10
    environment.close()


SHAPES = """
<mujoco>
  <visual><quality shadowsize="512"/><map znear="0.01"/></visual>
  <asset>
    <texture name="tiles" type="2d" builtin="checker" width="64" height="64" rgb1="1 1 1" rgb2="0.2 0.2 0.2"/>
    <texture name="sky" type="skybox" builtin="gradient" width="32" height="192" rgb1="0 0 1" rgb2="1 1 1"/>
    <material name="tiles" texture="tiles" texrepeat="4 4" reflectance="{floor}"/>
    <material name="mirror" reflectance="0.6" rgba="0.3 0.5 0.4 1"/>
    <mesh name="wedge" vertex="0 0 0  0.3 0 0  0 0.3 0  0 0 0.2  0.1 0.1 0.3"/>
  </asset>
  <worldbody>
    {lights}
    <geom type="plane" size="{plane} {plane} 0.1" material="tiles"/>
    <geom type="box" size="0.3 0.3 0.02" pos="0.3 0.2 0.1" material="mirror"/>
    <geom type="box" size="0.05 0.05 0.3" pos="-0.4 0.2 0.3" rgba="0 0 1 0.4"/>
    <body name="capsule" mocap="true"><geom type="capsule" size="0.04 0.2" rgba="1 0 0 1"/></body>
    <body name="cylinder" mocap="true"><geom type="cylinder" size="0.1 0.05" rgba="1 1 0 1"/></body>
    <body name="ellipsoid" mocap="true"><geom type="ellipsoid" size="0.1 0.05 0.2" rgba="0 1 0 1"/></body>
    <body name="wedge" mocap="true"><geom type="mesh" mesh="wedge" rgba="0 1 1 1"/></body>
    <body name="ball" mocap="true"><geom type="sphere" size="0.1"/><site type="box" size="0.02 0.02 0.2"/></body>
    <body name="eye" mocap="true"><camera name="eye" fovy="60"/></body>
  </worldbody>
</mujoco>
"""

SUN = '<light directional="true" pos="0.3 -0.2 2" dir="-0.1 0.2 -1"/>'
STEEP_SUN = '<light directional="true" pos="0 0 2" dir="1 0 -0.05"/>'
LAMP = '<light directional="false" pos="0 0.3 2" dir="0 0 -1"/>'
UNLIT = '<light directional="true" pos="0 0 2" dir="0 0 -1" castshadow="false"/>'


@pytest.mark.parametrize(
    ("lights", "floor", "plane"),
    [
        (SUN, 0.0, 2.0),
        (SUN, 0.3, 0),
        (STEEP_SUN + UNLIT, 0.0, 1.0),
        (SUN + LAMP, 0.0, 2.0),
        (LAMP, 0.3, 1.0),
        (UNLIT, 0.0, 1.0),
    ],
)
def test_all_shapes_lights_and_mirrors_from_all_sides_look_as_mujoco_draws_them(
    lights: str, floor: float, plane: float
) -> None:
    model = mujoco.MjModel.from_xml_string(SHAPES.format(lights=lights, floor=floor, plane=plane))
    data, generator = mujoco.MjData(model), np.random.default_rng(0)
    ours, stock = spared(model), StockRenderer(model, SIZE)
    num_without_mirror = num_left_out = 0
    for index in range(40):
        for body in range(model.nmocap):
            if generator.random() < 0.5 or index == 0:
                data.mocap_pos[body] = generator.uniform((-0.7, -0.7, -0.1), (0.7, 0.7, 1.0))
                data.mocap_quat[body] = generator.normal(size=4)
        mujoco.mj_forward(model, data)
        np.testing.assert_array_equal(ours.draw(model, data, 0), stock.draw(model, data, 0), err_msg=str(index))
        scene = ours._scene
        num_without_mirror += not scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION]
        num_left_out += sum(geom.type == NONE for geom in scene.geoms[: scene.ngeom])
    assert (num_without_mirror > 0) == (floor == 0)
    has_shadows_of_mujoco = lights in (SUN + LAMP, LAMP)
    assert (num_left_out > 0) != has_shadows_of_mujoco


class OtherMap(KeptShadowMap):
    """Leaves spheres out, as if this MuJoCo drew something else."""

    def _draw(self, kind: int, data: int, pose: bytes) -> None:
        if kind != mujoco.mjtGeom.mjGEOM_SPHERE:
            super()._draw(kind, data, pose)


def test_mujoco_draws_the_shadows_if_it_draws_them_otherwise_than_we() -> None:
    model = mujoco.MjModel.from_xml_string(SHAPES.format(lights=SUN, floor=0.0, plane=2.0))
    data = mujoco.MjData(model)
    data.mocap_pos[:] = 0.1, 0.1, 0.5
    data.mocap_pos[-1] = 0.1, 0.0, 1.5
    mujoco.mj_forward(model, data)
    ours, stock = spared(model), StockRenderer(model, SIZE)
    ours._shadows = OtherMap(ours._gl_context)
    for _ in range(2):
        np.testing.assert_array_equal(ours.draw(model, data, 0), stock.draw(model, data, 0))
    assert ours._shadows is None


def test_a_geoms_box_holds_it() -> None:
    model = mujoco.MjModel.from_xml_string(SHAPES.format(lights=SUN, floor=0.0, plane=2.0))
    data = mujoco.MjData(model)
    data.mocap_quat[:] = 0.5, 0.5, -0.5, 0.5
    mujoco.mj_forward(model, data)
    scene = mujoco.MjvScene(model, maxgeom=100)
    categories = mujoco.mjtCatBit.mjCAT_ALL.value
    mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, mujoco.MjvCamera(), categories, scene)
    geoms: Geoms = read_geoms(model, scene)
    wedge = int(np.flatnonzero(geoms.kinds == mujoco.mjtGeom.mjGEOM_MESH)[0])
    geom = scene.geoms[wedge].objid
    corners = model.mesh_vert @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]
    inside = np.abs((corners - geoms.centres[wedge]) @ geoms.axes[wedge])
    assert (inside <= geoms.halves[wedge] + 1e-6).all()
    assert geoms.halves[geoms.kinds == mujoco.mjtGeom.mjGEOM_PLANE].min() > 1e5


@pytest.mark.parametrize("direction", [(0.0, 0.0, -1.0), (1.0, 0.0, 0.0), (-1.0, 1.0, -1.0)])
def test_a_lights_view_looks_along_its_direction(direction: tuple[float, float, float]) -> None:
    position = np.array([1, -2, 3], np.float32)
    view = look_along(position, np.array(direction, np.float32))
    np.testing.assert_allclose(view[:3, :3] @ view[:3, :3].T, np.eye(3), atol=1e-6)
    ahead = np.append(position + direction, 1)
    np.testing.assert_allclose(view @ ahead, np.array([0, 0, -np.linalg.norm(direction), 1]), atol=1e-6)
