"""LIBERO's own environments, used as by the benchmark's authors: what ours are compared with, here and in tests."""

import atexit
import importlib
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from ript_envs.gl import used_backend
from ript_envs.libero.benchmark import Libero
from ript_envs.libero.installation import import_libero
from ript_envs.libero.simulator import seeded
from ript_envs.libero.suites import problem_file

NUM_SETTLE_STEPS = 10
"""Steps without motion at the begin of an episode."""


def build_stock(benchmark: Libero, task: str, *, seed: int, cameras: bool) -> Any:
    """Build an environment, which resets and compiles it.

    Args:
        benchmark: Its suite is used.
        task: The task.
        seed: Of the places of furniture and objects.
        cameras: Whether both cameras' images are part of an observation, as by default.

    Returns:
        An instance of `libero.libero.envs.env_wrapper.ControlEnv`; with cameras, of `OffScreenRenderEnv`.
    """
    wrapper = import_libero()
    options: dict[str, Any] = {"has_offscreen_renderer": False, "use_camera_obs": False}
    if cameras:
        _bring_opengl()
        options = {"camera_heights": benchmark.image_size, "camera_widths": benchmark.image_size}
    kind = wrapper.OffScreenRenderEnv if cameras else wrapper.ControlEnv
    with seeded(seed):
        stock = kind(bddl_file_name=str(problem_file(benchmark.suite, task)), hard_reset=False, **options)
    stock.env.visualize(dict.fromkeys(stock._visualizations, False))  # as by a reset: no marks in the hand
    return stock


def begin(stock: Any, state: NDArray[np.float64]) -> None:
    """Begin an episode in an initial state, and let it settle."""
    stock.set_init_state(state)
    robot = stock.robots[0]
    robot.controller.update(force=True)  # else its first command is computed from the pose before
    robot.controller.reset_goal()
    robot.gripper.current_action = np.zeros(2)
    for _ in range(NUM_SETTLE_STEPS):
        stock.step(np.zeros(7))


def bind(stock: Any) -> None:
    """Let an environment render: robosuite takes for granted that no other one has rendered since."""
    renderer = stock.sim._render_context_offscreen
    renderer.gl_ctx.make_current()
    mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, renderer.con)


def frame(stock: Any, camera: str, size: int) -> NDArray[np.uint8]:
    """Return the image (size, size, 3) of a camera, bottom row first."""
    if stock.sim._render_context_offscreen is None:
        _bring_opengl()
        binding = importlib.import_module("robosuite.utils.binding_utils")
        binding.MjRenderContextOffscreen(stock.sim, device_id=-1).vopt.geomgroup[:2] = 0, 1  # as robosuite does
    bind(stock)
    stock._post_process()
    image: NDArray[np.uint8] = stock.sim.render(camera_name=camera, width=size, height=size)
    return image


def _bring_opengl() -> None:
    """Give robosuite, which we import without OpenGL, a context of the library that we use."""
    library: Any = importlib.import_module(f"mujoco.{used_backend()}")
    binding: Any = importlib.import_module("robosuite.utils.binding_utils")

    def new_context(*, max_width: int, max_height: int, device_id: int) -> Any:
        made = library.GLContext(max_width, max_height)
        atexit.register(made.free)  # before the library closes its display connection
        return made

    binding.GLContext = new_context
