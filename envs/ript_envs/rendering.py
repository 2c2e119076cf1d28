"""Pictures of MuJoCo scenes without a display.

Each thread that draws has one OpenGL context, made when it first draws and kept: freeing one context while others
are in use leaves OSMesa drawing nothing. What lies on the graphics card (meshes, textures, shadow map, 100 MB and
more at full quality) is shared by all environments of one task.
"""

import atexit
import ctypes
import importlib
import os
import threading
import weakref
from collections.abc import Hashable
from typing import Any, get_args

import mujoco
import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import Rendering

_THREAD = threading.local()


class OffscreenRenderer:
    """Draws scenes of one model."""

    def __init__(self, model: mujoco.MjModel, *, size: int, rendering: Rendering):
        """Load a model's meshes and textures.

        Args:
            model: Any scene of this model can be drawn afterwards.
            size: Height and width of the pictures, in pixels.
            rendering: Their quality.

        Raises:
            RuntimeError: This machine cannot draw.
        """
        _make_context_current()
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        if rendering == "fast":
            model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        if rendering == "fast":
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._scene.flags[flag] = False
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._viewport = mujoco.MjrRect(0, 0, size, size)
        self._gl_context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        weakref.finalize(self, _free, self._gl_context, _THREAD.context).atexit = False

    def draw(self, model: mujoco.MjModel, data: mujoco.MjData, camera: int) -> NDArray[np.uint8]:
        """What a camera sees now, uint8 (size, size, 3); the first row is the bottom one, as OpenGL has it.

        Drawing changes nothing in `model` and `data`.
        """
        _make_context_current()
        self._camera.fixedcamid = camera
        mujoco.mjv_updateScene(
            model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        # Each time: the buffer that was bound may be that of a screen which has been freed since.
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._gl_context)
        mujoco.mjr_render(self._viewport, self._scene, self._gl_context)
        picture = np.empty((self._viewport.height, self._viewport.width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(picture, None, self._viewport, self._gl_context)
        return picture


def shared_renderer(name: Hashable, model: mujoco.MjModel, *, size: int, rendering: Rendering) -> OffscreenRenderer:
    """This thread's screen for a model; it is freed when nobody holds it any more.

    Args:
        name: Stands for the model's meshes and textures: models of one name must not differ in them.
        model: See `OffscreenRenderer`.
        size: See `OffscreenRenderer`.
        rendering: See `OffscreenRenderer`.
    """
    if rendering not in get_args(Rendering):
        raise ValueError(f"rendering must be one of {', '.join(get_args(Rendering))}, not {rendering!r}")
    if not hasattr(_THREAD, "screens"):
        _THREAD.screens = weakref.WeakValueDictionary()
    key = (name, size, rendering)
    screen: OffscreenRenderer | None = _THREAD.screens.get(key)
    if screen is None:
        screen = _THREAD.screens[key] = OffscreenRenderer(model, size=size, rendering=rendering)
    return screen


def _free(on_card: mujoco.MjrContext, context: Any) -> None:
    """Free what lies on the card; in the context of another library its names would mean other things."""
    if hasattr(_THREAD, "context") and _THREAD.context is context:
        context.make_current()
    on_card.free()


def _make_context_current() -> None:
    if not hasattr(_THREAD, "context"):
        _THREAD.context = _new_context()
        atexit.register(_THREAD.context.free)  # before the library ends its connection to the card
    _THREAD.context.make_current()


def _new_context() -> Any:
    """An OpenGL context by way of EGL, else OSMesa; MUJOCO_GL overrides that.

    One way per process: PyOpenGL binds itself to the first it is asked for.
    """
    way = os.environ.get("MUJOCO_GL", "").lower().strip() or ("egl" if _has_egl() else "osmesa")
    if way not in ("egl", "osmesa", "glfw"):
        raise RuntimeError(f"MUJOCO_GL is {way!r}; to draw pictures it must be egl, osmesa, glfw or unset")
    try:
        return importlib.import_module(f"mujoco.{way}").GLContext(64, 64)
    except Exception as error:  # the libraries raise whatever comes to hand
        raise RuntimeError(
            f"this machine cannot draw pictures by way of {way} ({type(error).__name__}: {error}); "
            "install libegl1 and libgl1, or libosmesa6 and set MUJOCO_GL=osmesa"
        ) from error


def _has_egl() -> bool:
    try:
        ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    return True
