"""LIBERO's own environment of a task, without cameras: its compiled model, draws of scenes, and what success is.

robosuite and LIBERO are imported here, in the process that steps them, and nowhere else.
"""

import contextlib
import importlib
import logging
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from ript_envs.gl import LIBRARIES, chosen_backend, has_library
from ript_envs.libero import compiled_models, scenery
from ript_envs.libero.suites import problem_file

CHANGING = ("body_pos", "body_quat", "site_rgba")
"""What LIBERO changes in a compiled model: places of furniture in a reset, and lights of switches."""

_SHARED: weakref.WeakValueDictionary[tuple[Any, ...], "Simulator"] = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


class Scene:
    """What an environment has for itself: the state of its simulation, and its version of what changes in the model."""

    def __init__(self, model: mujoco.MjModel, changing: tuple[NDArray[Any], ...]):
        self.data = mujoco.MjData(model)
        self.changing = tuple(array.copy() for array in changing)


class Simulator:
    """LIBERO's environment of a task and its model, shared by all our environments of the task in this process.

    A model takes 0.3 GB and seconds to compile, a scene a few MB and no time.

    Attributes:
        stock: An instance of `libero.libero.envs.bddl_base_domain.BDDLBaseDomain`.
        model: The compiled model.
    """

    def __init__(self, suite: str, task: str, *, simplified_meshes: bool = False, small_textures: bool = False):
        """Build LIBERO's environment; see `Libero` for the options.

        Raises:
            LiberoMissingError: LIBERO is not installed.
        """
        self.stock = _build(suite, task)
        self.model: mujoco.MjModel = self.stock.sim.model._model
        if simplified_meshes:
            scenery.simplify_meshes(self.model)
        if small_textures:
            scenery.shrink_textures(self.model)
        self._changing = tuple(getattr(self.model, name) for name in CHANGING)
        self._first = tuple(array.copy() for array in self._changing)
        self._active: Scene | None = None
        self._lock = threading.RLock()
        weakref.finalize(self, _free, self.stock).atexit = False  # robosuite's objects are reference cycles

    def new_scene(self) -> Scene:
        """Return a scene that does not depend on others; it must be reset before it is stepped."""
        return Scene(self.model, self._first)

    @contextlib.contextmanager
    def active(self, scene: Scene) -> Iterator[None]:
        """Make `stock` and `model` those of a scene; other threads wait."""
        with self._lock:
            if self._active is not scene:
                if self._active is not None:
                    _copy(self._changing, self._active.changing)
                _copy(scene.changing, self._changing)
                self.stock.sim.data._data = scene.data
                self._active = scene
            yield

    def draw_scene(self, seed: int) -> None:
        """Let LIBERO draw the places of all objects and furniture in the active scene."""
        failed = importlib.import_module("robosuite.utils.errors").RandomizationError
        with seeded(seed):
            while True:
                try:
                    self.stock.reset()
                    return
                except failed:  # LIBERO's own loop: some draws overlap
                    continue


def shared(suite: str, task: str, *, simplified_meshes: bool = False, small_textures: bool = False) -> Simulator:
    """Return this process's simulator of a task, which is freed with its last environment; see `Simulator`."""
    key = (suite, task, simplified_meshes, small_textures)
    with _LOCK:
        found = _SHARED.get(key)
        if found is None:
            found = _SHARED[key] = Simulator(
                suite, task, simplified_meshes=simplified_meshes, small_textures=small_textures
            )
        return found


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, from which LIBERO draws; afterwards it is as it was."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


def import_libero() -> Any:
    """Import LIBERO's environments, without robosuite's choice of an OpenGL library, its warnings and its log file.

    Returns:
        The module `libero.libero.envs.env_wrapper`.
    """
    backend = chosen_backend() or next((each for each in LIBRARIES if has_library(each)), "")
    before = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = backend  # robosuite demands EGL otherwise
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    try:
        return importlib.import_module("libero.libero.envs.env_wrapper")
    finally:
        if before is None:
            os.environ.pop("MUJOCO_GL", None)
        else:
            os.environ["MUJOCO_GL"] = before


def _build(suite: str, task: str) -> Any:
    """Build LIBERO's environment as its own wrapper does, with resets that keep the compiled model."""
    wrapper = import_libero()
    path = str(problem_file(suite, task))
    problem: type = wrapper.TASK_MAPPING[wrapper.BDDLUtils.get_problem_info(path)["problem_name"]]
    with seeded(0):  # construction resets once
        return type(problem.__name__, (compiled_models.Cached, problem), {})(
            path,
            robots=["Panda"],
            controller_configs=wrapper.suite.load_controller_config(default_controller="OSC_POSE"),
            initialization_noise=None,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            hard_reset=False,
            ignore_done=True,
        )


def _copy(source: tuple[NDArray[Any], ...], target: tuple[NDArray[Any], ...]) -> None:
    for one, other in zip(source, target, strict=True):
        other[:] = one


def _free(stock: Any) -> None:
    stock.sim.data._data = stock.sim.model._model = None
