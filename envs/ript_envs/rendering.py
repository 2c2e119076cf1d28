"""Offscreen rendering of MuJoCo scenes.

Each rendering thread has one OpenGL context, created on first use and kept: freeing a context while others are in use
leaves OSMesa rendering nothing. GPU resources (meshes, textures, shadow map; 100 MB and more at full quality) are
shared by all environments of one task.

Pictures are MuJoCo's own, bit for bit, but without a GPU it is spared what does not change them; see `scene`.
"""

import atexit
import contextlib
import importlib
import threading
import weakref
from collections.abc import Hashable, Iterator
from typing import Any, get_args

import mujoco
import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import Rendering
from ript_envs.egl_device import own_gpu_selected
from ript_envs.gl import RenderingError, require_renderer, used_backend
from ript_envs.scene.culling import leave_out_unseen
from ript_envs.scene.geoms import Geoms, read_geoms
from ript_envs.scene.shadow_map import KeptShadowMap

_THREAD = threading.local()


class OffscreenRenderer:
    """Renders scenes of one model."""

    def __init__(self, model: mujoco.MjModel, *, size: int, rendering: Rendering, hidden_groups: tuple[int, ...] = ()):
        """Load a model's meshes and textures.

        Args:
            model: The model; the renderer can render any of its states.
            size: Height and width of the images, in pixels.
            rendering: Image quality.
            hidden_groups: Groups of geoms that are not drawn, besides those that MuJoCo hides.

        Raises:
            RenderingError: OpenGL is not available on this machine.
        """
        _make_context_current()
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        if rendering == "fast":
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._scene.flags[flag] = False
        self._option = mujoco.MjvOption()
        self._option.geomgroup[list(hidden_groups)] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._viewport = mujoco.MjrRect(0, 0, size, size)
        with _quality(model, size, rendering):
            self._gl_context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        # A GPU draws all in no time, and the bits of its map may depend on what else it draws.
        self._is_slow = rendering == "full" and _is_software()
        has_map = self._is_slow and self._gl_context.shadowFBO and self._gl_context.offFBO_r
        self._shadows = KeptShadowMap(self._gl_context) if has_map else None
        self._is_checked = False
        weakref.finalize(self, _free, self._gl_context, _THREAD.context).atexit = False

    def draw(self, model: mujoco.MjModel, data: mujoco.MjData, camera: int) -> NDArray[np.uint8]:
        """Return the image of a camera, uint8 (size, size, 3), bottom row first, as in OpenGL.

        Rendering changes nothing in `model` and `data`.
        """
        _make_context_current()
        self._camera.fixedcamid = camera
        self._update_scene(model, data)
        if not self._is_slow:  # looking for what can be left out takes as long as drawing it
            return self._render()
        geoms = read_geoms(model, self._scene)
        if self._shadows is None or not self._shadows.suits(self._scene, geoms):
            casts = any(light.castshadow for light in self._scene.lights[: self._scene.nlight])
            leave_out_unseen(self._scene, geoms, draws_shadows=casts)
            return self._render()
        if self._is_checked:
            return self._render_with(self._shadows, geoms)
        self._is_checked = True
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = True
        image = self._render()
        is_same = self._shadows.agrees(self._scene, geoms)
        self._update_scene(model, data)
        if not is_same or (self._render_with(self._shadows, geoms) != image).any():
            self._shadows = None  # another version of MuJoCo, which shall draw them itself
        return image

    def _render_with(self, shadows: KeptShadowMap, geoms: Geoms) -> NDArray[np.uint8]:
        shadows.update(self._scene, geoms)
        leave_out_unseen(self._scene, geoms, draws_shadows=False)
        with shadows.used(self._scene):
            return self._render()

    def _update_scene(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        mujoco.mjv_updateScene(
            model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )

    def _render(self) -> NDArray[np.uint8]:
        # Every time: the buffer bound last may belong to a renderer that has been freed since.
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._gl_context)
        mujoco.mjr_render(self._viewport, self._scene, self._gl_context)
        image = np.empty((self._viewport.height, self._viewport.width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(image, None, self._viewport, self._gl_context)
        return image


def shared_renderer(
    name: Hashable, model: mujoco.MjModel, *, size: int, rendering: Rendering, hidden_groups: tuple[int, ...] = ()
) -> OffscreenRenderer:
    """Return this thread's renderer of a model, which is freed with its last reference.

    Args:
        name: Identifies the model's meshes and textures: models of the same name must share them.
        model: See `OffscreenRenderer`.
        size: See `OffscreenRenderer`.
        rendering: See `OffscreenRenderer`.
        hidden_groups: See `OffscreenRenderer`.
    """
    if rendering not in get_args(Rendering):
        raise ValueError(f"rendering must be one of {', '.join(get_args(Rendering))}, not {rendering!r}")
    if not hasattr(_THREAD, "renderers"):
        _THREAD.renderers = weakref.WeakValueDictionary()
    key = (name, size, rendering)
    renderer: OffscreenRenderer | None = _THREAD.renderers.get(key)
    if renderer is None:
        renderer = _THREAD.renderers[key] = OffscreenRenderer(
            model, size=size, rendering=rendering, hidden_groups=hidden_groups
        )
    return renderer


@contextlib.contextmanager
def _quality(model: mujoco.MjModel, size: int, rendering: Rendering) -> Iterator[None]:
    """Give a model the settings that GPU resources are made with; other renderers of it may have others."""
    sizes, quality = model.vis.global_, model.vis.quality
    before = sizes.offwidth, sizes.offheight, quality.shadowsize, quality.offsamples
    sizes.offwidth = sizes.offheight = size
    if rendering == "fast":
        quality.shadowsize = quality.offsamples = 0
    try:
        yield
    finally:
        sizes.offwidth, sizes.offheight, quality.shadowsize, quality.offsamples = before


def _free(gpu_resources: mujoco.MjrContext, context: Any) -> None:
    """Free GPU resources in their own context: in another library's, their names would mean other objects."""
    if hasattr(_THREAD, "context") and _THREAD.context is context:
        context.make_current()
    gpu_resources.free()


def _make_context_current() -> None:
    if not hasattr(_THREAD, "context"):
        _THREAD.context = _new_context()
        atexit.register(_THREAD.context.free)  # before the library closes its display connection
    _THREAD.context.make_current()


def _is_software() -> bool:
    gl: Any = importlib.import_module("OpenGL.GL")
    return b"llvmpipe" in gl.glGetString(gl.GL_RENDERER)


def _new_context() -> Any:
    """Create an OpenGL context: with EGL on the GPU that this process was given.

    There is one backend per process: PyOpenGL binds to the first one used.
    """
    require_renderer()
    backend = used_backend()
    try:
        with own_gpu_selected() if backend == "egl" else contextlib.nullcontext():
            return importlib.import_module(f"mujoco.{backend}").GLContext(64, 64)
    except Exception as error:  # the libraries raise all kinds of exceptions
        raise RenderingError(
            f"this machine cannot render images with {backend} ({type(error).__name__}: {error}); "
            "install libegl1 and libgl1, or libosmesa6 and set MUJOCO_GL=osmesa"
        ) from error
