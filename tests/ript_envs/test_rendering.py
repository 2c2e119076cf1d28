"""Rendering: image content, sharing of renderers, number of rendered frames."""

import ctypes
import gc
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium.envs.mujoco.mujoco_rendering as gymnasium_rendering
import mujoco
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ript_envs.contract import Environment, Observation
from ript_envs.egl_device import find_device
from ript_envs.metaworld.benchmark import MetaWorld
from ript_envs.metaworld.environment import MetaWorldEnvironment
from ript_ray.policies.base import Decisions
from ript_ray.policies.state_dict import ModulePolicy
from ript_ray.rl.rollout import EnvironmentPool, roll_out
from ript_ray.types import Arrays, Context, RolloutRequest, Version

pytestmark = pytest.mark.sim

WITH_CAMERA = MetaWorld(cameras=("corner_rgb",), rendering="fast")
NUM_EXECUTED = 8


class CountingEnvironment:
    """Counts its observations, and makes one after every step if it is eager."""

    def __init__(self, inner: Environment, *, is_eager: bool):
        self._inner = inner
        self._is_eager = is_eager
        self.num_images = 0
        self.num_steps = 0

    def reset(self, initial_state: np.ndarray) -> None:
        self._inner.reset(initial_state)

    def step(self, action: np.ndarray) -> bool:
        self.num_steps += 1
        success = self._inner.step(action)
        if self._is_eager:
            self.observe()
        return success

    def observe(self) -> Observation:
        self.num_images += 1
        return self._inner.observe()

    def render(self, camera: str) -> NDArray[np.uint8]:
        return self._inner.render(camera)

    def close(self) -> None:
        self._inner.close()


class RandomPolicy(ModulePolicy):
    """Acts at random and keeps the images it receives."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[np.ndarray] = []

    def act(
        self, observations: Arrays, instructions: Sequence[str], generators: Sequence[np.random.Generator]
    ) -> Decisions:
        self.images.extend(observations["corner_rgb"])
        chunks = np.stack([generator.uniform(-1, 1, (NUM_EXECUTED, 4)) for generator in generators])
        ones = np.ones((len(instructions), 1), np.float32)
        return Decisions(chunks.astype(np.float32), {}, ones, ones.astype(bool))

    def log_probs(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        raise NotImplementedError


def metaworld(task: str, benchmark: MetaWorld = WITH_CAMERA) -> MetaWorldEnvironment:
    environment = benchmark.make(task)
    assert isinstance(environment, MetaWorldEnvironment)
    return environment


def images_in_rollouts(*, is_eager: bool) -> tuple[list[np.ndarray], list[CountingEnvironment]]:
    environments: list[CountingEnvironment] = []

    def make(task: str) -> Environment:
        environments.append(CountingEnvironment(WITH_CAMERA.make(task), is_eager=is_eager))
        return environments[-1]

    pool, policy = EnvironmentPool(make), RandomPolicy()
    contexts = tuple(
        Context("drawer-open-v3", "", tuple(WITH_CAMERA.draw_initial_state("drawer-open-v3", (index,))))
        for index in (0, 1)
    )
    for index in range(2):  # the second one in used environments
        request = RolloutRequest(index, contexts, seeds=((index, 0), (index, 1)))
        roll_out(request, policy, pool, max_steps=40, version=Version(0))
    pool.close()
    return policy.images, environments


def test_only_the_frames_that_a_policy_reads_are_rendered_and_they_equal_those_of_rendering_every_step() -> None:
    (lazy, environments), (eager, eager_environments) = (images_in_rollouts(is_eager=flag) for flag in (False, True))
    np.testing.assert_array_equal(lazy, eager)
    assert len(lazy) == 2 * 2 * 40 // NUM_EXECUTED
    assert len({image.tobytes() for image in lazy}) > 15, "the images must differ where the scenes do"
    assert sum(environment.num_images for environment in environments) == len(lazy)
    assert sum(environment.num_images for environment in eager_environments) == len(lazy) + 2 * 2 * 40


def test_an_image_equals_that_of_the_authors_viewer_in_their_orientation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    benchmark = MetaWorld(cameras=("corner_rgb",))
    environment = metaworld("drawer-open-v3", benchmark)
    environment.reset(benchmark.draw_initial_state("drawer-open-v3", (0,)))
    ours = environment.observe()["corner_rgb"]
    assert ours.shape == benchmark.spec.image_shapes["corner_rgb"] == (128, 128, 3)
    assert ours.dtype == np.uint8
    monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL") or "egl")
    model, data = environment._sim.model, environment._sim.data
    viewer = gymnasium_rendering.OffScreenViewer(model, data, 128, 128)
    camera = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "corner2")
    assert camera == 2, "the authors move camera 2"
    theirs = viewer.render("rgb_array", camera_id=camera)[::-1]
    np.testing.assert_array_equal(ours, theirs)
    viewer.make_context_current()
    viewer.con.free()  # in another context it would free what lies there
    viewer.close()
    np.testing.assert_array_equal(environment.observe()["corner_rgb"], ours)  # with their context gone again
    environment.close()


def rows_of_the_arm(image: np.ndarray) -> float:
    red, green, blue = (image[..., channel].astype(int) for channel in range(3))
    return float(np.nonzero((red > 100) & (red > 2 * green) & (red > 2 * blue))[0].mean())


def test_images_are_upright() -> None:
    environment = WITH_CAMERA.make("reach-v3")
    environment.reset(WITH_CAMERA.draw_initial_state("reach-v3", (0,)))
    low = rows_of_the_arm(environment.render("corner_rgb"))
    for _ in range(30):
        environment.step(np.array([0, 0, 1, 0], np.float32))
    assert rows_of_the_arm(environment.render("corner_rgb")) < low - 3
    environment.close()


def test_environments_of_a_task_share_one_renderer_which_is_freed_with_the_last_of_them() -> None:
    one, other, foreign = (metaworld(task) for task in ("push-v3", "push-v3", "reach-v3"))
    for index, environment in enumerate((one, other, foreign)):
        environment.reset(WITH_CAMERA.draw_initial_state(("push-v3", "push-v3", "reach-v3")[index], (index,)))
    assert one._renderer is None, "nothing may be built before an image is requested"
    first = one.render("corner_rgb")
    assert (other.render("corner_rgb") != first).any()
    assert one._renderer is other._renderer
    foreign.render("corner_rgb")
    assert foreign._renderer is not one._renderer
    renderers = [id(screen) for screen in (one._renderer, foreign._renderer)]
    one.close()
    foreign.close()
    gc.collect()
    again = other.render("corner_rgb")
    assert (again != first).any()
    assert again.std() > 10, "nothing was rendered"
    assert id(other._renderer) == renderers[0]
    other.close()


def test_freeing_a_renderer_does_not_harm_another_librarys_context(tmp_path: Path) -> None:
    result = draw("", SHARED_PROCESS, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == [], "MuJoCo has logged an OpenGL error"


def test_without_cameras_no_image_is_rendered() -> None:
    environment = metaworld("push-v3", MetaWorld())
    environment.reset(MetaWorld().draw_initial_state("push-v3", (0,)))
    assert set(environment.observe()) == {"state", "relative", "robot_states"}
    assert environment._renderer is None
    assert MetaWorld().with_cameras(("corner_rgb",)).cameras == ("corner_rgb",)
    environment.close()


def test_the_robot_state_is_hand_and_gripper_now_and_one_step_before() -> None:
    environment = MetaWorld().make("push-v3")
    environment.reset(MetaWorld().draw_initial_state("push-v3", (0,)))
    before = environment.observe()["robot_states"]
    environment.step(np.array([1, 0, 1, 1], np.float32))
    after = environment.observe()["robot_states"]
    np.testing.assert_array_equal(before[:4], before[4:])
    np.testing.assert_array_equal(after[4:], before[:4])
    assert after[0] > before[0]
    environment.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cameras": ("corner2",)}, "no camera 'corner2'; it has corner_rgb"),
        ({"image_size": 0}, "image-size must be at least 1 pixel, not 0"),
        ({"rendering": "best"}, "rendering must be one of full, fast, not 'best'"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetaWorld(**settings)


DRAW = """
from ript_envs.metaworld.benchmark import MetaWorld
benchmark = MetaWorld(rendering="fast")
environments = [benchmark.make(task) for task in ("push-v3", "reach-v3")]
for task, environment in zip(("push-v3", "reach-v3"), environments):
    environment.reset(benchmark.draw_initial_state(task, (0,)))
first = environments[0].render("corner_rgb")
environments[1].render("corner_rgb")
environments[0].close()
assert environments[1].render("corner_rgb").std() > 10
again = benchmark.make("push-v3")
again.reset(benchmark.draw_initial_state("push-v3", (0,)))
environments[1].close()
assert (again.render("corner_rgb") == first).all()
print(first.sum())
"""


SHARED_PROCESS = """
import os
os.environ["MUJOCO_GL"] = os.environ.get("MUJOCO_GL") or "egl"
import mujoco
from ript_envs.metaworld.benchmark import MetaWorld
benchmark = MetaWorld(rendering="fast")
ours = benchmark.make("push-v3")
ours.reset(benchmark.draw_initial_state("push-v3", (0,)))
ours.render("corner_rgb")
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom type='box' size='1 1 1'/></worldbody></mujoco>"
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
theirs = mujoco.Renderer(model, 64, 64)
theirs.update_scene(data)
before = theirs.render()
ours.close()
assert before.std() > 1
assert (theirs.render() == before).all()
ours = benchmark.make("push-v3")
ours.reset(benchmark.draw_initial_state("push-v3", (0,)))
assert ours.render("corner_rgb").std() > 10
theirs.close()
assert ours.render("corner_rgb").std() > 10
"""


def draw(way: str, code: str = DRAW, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    own |= {"PYTHONPATH": str(Path(__file__).parents[2] / "envs")} | ({"MUJOCO_GL": way} if way else {})
    return subprocess.run([sys.executable, "-c", code], env=own, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("visible", "numbers", "device"),
    [
        ("0", [2, 1, 0, None], 2),
        ("3,0", [0, 1, 2, 5, 4, 3], 5),
        (" 1 ", [None, 1], 1),
        ("0", [None], None),
        ("7", [0, 1], None),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", [0], None),
        ("-1", [0], None),
        ("", [0], None),
    ],
)
def test_the_gpu_that_a_process_was_given_is_found_among_those_of_egl(
    visible: str, numbers: list[int | None], device: int | None
) -> None:
    assert find_device(visible, numbers) == device


def test_another_process_renders_the_same_and_exits_cleanly_also_if_egl_does_not_know_its_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "99")
    here = WITH_CAMERA.make("push-v3")
    here.reset(WITH_CAMERA.draw_initial_state("push-v3", (0,)))
    result = draw(os.environ.get("MUJOCO_GL", ""), cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == [], "MuJoCo has logged an OpenGL error"
    assert int(result.stdout) == here.render("corner_rgb").sum()
    here.close()


def test_osmesa_renders_without_egl() -> None:
    try:
        ctypes.CDLL("libOSMesa.so.8")
    except OSError:
        pytest.skip("libosmesa6 is not installed")
    result = draw("osmesa")
    assert (result.returncode, result.stderr) == (0, "")


def test_an_invalid_mujoco_gl_is_named() -> None:
    result = draw("off")
    assert "MUJOCO_GL is 'off'; to render images it must be egl, osmesa, glfw or unset" in result.stderr
