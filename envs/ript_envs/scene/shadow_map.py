"""The shadow map of a scene, of which only what has changed since the last picture is drawn again.

MuJoCo clears the map and draws all of it for each picture: 4,096 x 4,096 texels, most of them floor and table, whose
shadows do not move. The map is the depth nearest to the light, whatever the order of drawing, so clearing a rectangle
and drawing all that reaches into it gives the same bits.
"""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from ript_envs.scene.geoms import CAPSULE, MESH, PLANE, SOLIDS, Geoms, extents

LISTS = {
    int(mujoco.mjtGeom.mjGEOM_SPHERE): 0,
    int(mujoco.mjtGeom.mjGEOM_ELLIPSOID): 0,
    int(mujoco.mjtGeom.mjGEOM_CYLINDER): 3,
    int(mujoco.mjtGeom.mjGEOM_BOX): 6,
}
"""MuJoCo's built-in display lists. Source: `render_context.h`."""

SPHERE_TOP, SPHERE_BOTTOM, OPEN_CYLINDER = 1, 2, 4

OFFSET_FACTOR, OFFSET_UNITS = -1.5, -4.0
"""How far behind their place surfaces are drawn, so that they do not shade themselves. Source: `render_gl3.c`."""

MARGIN = 3
"""Texels around the box of a geom: one for MuJoCo's empty border, one for rounding, one to spare."""

Key = tuple[int, int, bytes]
"""Kind, display list and pose of a geom."""

Rectangle = tuple[int, int, int, int]
"""Left, bottom, right and top texel, the latter two not included."""


class KeptShadowMap:
    """The shadow map of a renderer, for scenes with one light that casts shadows, a directional one."""

    def __init__(self, context: mujoco.MjrContext):
        """Use a context's map, in which nothing has been drawn."""
        self._context = context
        self._light: tuple[object, ...] = ()
        self._drawn: dict[Key, Rectangle] = {}
        self._gl: Any = importlib.import_module("OpenGL.GL")  # binds to the library that MuJoCo has chosen
        self._clip_control: Any = importlib.import_module("OpenGL.GL.ARB.clip_control")

    def suits(self, scene: mujoco.MjvScene, geoms: Geoms) -> bool:
        """Return whether the scene's shadows can be drawn; if not, MuJoCo will draw its own, and ours are gone."""
        lights = [light for light in scene.lights[: scene.nlight] if light.castshadow]
        is_drawable = np.isin(geoms.kinds[geoms.casts], (PLANE, MESH, *SOLIDS)).all()
        suits = len(lights) == 1 and _is_directional(lights[0]) and bool(is_drawable) and not scene.enabletransform
        if not suits:
            self._light = ()
        return suits

    def update(self, scene: mujoco.MjvScene, geoms: Geoms) -> None:
        """Draw what has changed; the scene must suit."""
        camera = mujoco.mjv_averageCamera(scene.camera[0], scene.camera[1])
        light = next(light for light in scene.lights[: scene.nlight] if light.castshadow)
        position, direction = light.pos.astype(np.float32), light.dir.astype(np.float32)
        depths = float(camera.frustum_near), float(camera.frustum_far)
        size = self._context.shadowSize
        is_new = self._light != (position.tobytes(), direction.tobytes(), depths)
        if is_new:
            self._light = (position.tobytes(), direction.tobytes(), depths)
            self._drawn = {}
        view = look_along(position, direction)
        now = self._rectangles(geoms, view)
        changed = [now.get(key) or self._drawn[key] for key in now.keys() ^ self._drawn.keys()]
        if is_new:
            changed.append((0, 0, size, size))
        if changed:
            lows, highs = np.array(changed)[:, :2].min(axis=0), np.array(changed)[:, 2:].max(axis=0)
            left, bottom, right, top = (int(edge) for edge in (*lows, *highs))
            reaching = [key for key, box in now.items() if _overlap(box, (left, bottom, right, top))]
            with self._drawing(view, depths, (left, bottom, right, top)):
                for key in reaching:
                    self._draw(*key)
        self._drawn = now

    def agrees(self, scene: mujoco.MjvScene, geoms: Geoms) -> bool:
        """Return whether the map that MuJoCo has just drawn of a scene that suits is the one that we draw.

        Another version of MuJoCo may draw it otherwise.
        """
        theirs = self._middle()
        self.update(scene, geoms)
        return bool((self._middle() == theirs).all())

    @contextlib.contextmanager
    def used(self, scene: mujoco.MjvScene) -> Iterator[None]:
        """Let MuJoCo read the map and not draw it: it clears the resolved picture instead, before that is made."""
        for geom in scene.geoms[: scene.ngeom]:
            geom.category = mujoco.mjtCatBit.mjCAT_DECOR  # casts no shadow, and means nothing else
        before = self._context.shadowFBO
        self._context.shadowFBO = self._context.offFBO_r
        try:
            yield
        finally:
            self._context.shadowFBO = before

    def _middle(self) -> NDArray[np.uint32]:
        gl, quarter = self._gl, self._context.shadowSize // 4
        gl.glBindFramebuffer(gl.GL_FRAMEBUFFER, self._context.shadowFBO)
        gl.glReadBuffer(gl.GL_NONE)
        depths = np.empty((2 * quarter, 2 * quarter), np.uint32)
        gl.glReadPixels(quarter, quarter, *depths.shape, gl.GL_DEPTH_COMPONENT, gl.GL_UNSIGNED_INT, depths)
        return depths

    def _rectangles(self, geoms: Geoms, view: NDArray[np.float32]) -> dict[Key, Rectangle]:
        """Return where in the map each geom that casts shadows may be."""
        size, texels_per_m = self._context.shadowSize, (self._context.shadowSize - 2) / 2 / self._context.shadowClip
        across = view[:2, :3].astype(np.float64)
        middles = (geoms.centres @ across.T + view[:2, 3]) * texels_per_m + size / 2
        reach = extents(geoms, across) * texels_per_m + MARGIN
        lows = np.clip(middles - reach, 0, size).astype(np.int64)
        highs = np.clip(middles + reach, 0, size).astype(np.int64)
        boxes = np.hstack([lows, highs]).tolist()
        keys = zip(geoms.kinds.tolist(), geoms.data.tolist(), map(bytes, geoms.poses), strict=True)
        return {key: tuple(box) for key, box, casts in zip(keys, boxes, geoms.casts, strict=True) if casts}

    @contextlib.contextmanager
    def _drawing(self, view: NDArray[np.float32], depths: tuple[float, float], rectangle: Rectangle) -> Iterator[None]:
        """Set OpenGL up as MuJoCo does for its shadow map, and clear a rectangle, outside of which nothing changes."""
        gl, clip, size = self._gl, self._context.shadowClip, self._context.shadowSize
        left, bottom, right, top = rectangle
        gl.glBindFramebuffer(gl.GL_FRAMEBUFFER, self._context.shadowFBO)
        gl.glDrawBuffer(gl.GL_NONE)
        gl.glMatrixMode(gl.GL_PROJECTION)
        gl.glLoadIdentity()
        gl.glTranslatef(0.0, 0.0, 0.5)
        gl.glScalef(1.0, 1.0, -0.5)
        gl.glOrtho(-clip, clip, -clip, clip, *depths)
        gl.glMatrixMode(gl.GL_MODELVIEW)
        gl.glLoadIdentity()
        gl.glMultMatrixf(np.ascontiguousarray(view.T))
        self._clip_control.glClipControl(gl.GL_LOWER_LEFT, self._clip_control.GL_ZERO_TO_ONE)
        for option in ("BLEND", "LIGHTING", "CULL_FACE", "ALPHA_TEST", "STENCIL_TEST"):
            gl.glDisable(getattr(gl, f"GL_{option}"))
        gl.glEnable(gl.GL_DEPTH_TEST)
        gl.glDepthMask(gl.GL_TRUE)
        gl.glDepthFunc(gl.GL_GEQUAL)
        gl.glDepthRange(0, 1)
        gl.glPolygonMode(gl.GL_FRONT_AND_BACK, gl.GL_FILL)
        gl.glColorMask(*4 * (gl.GL_FALSE,))
        gl.glPolygonOffset(OFFSET_FACTOR, OFFSET_UNITS)
        gl.glEnable(gl.GL_POLYGON_OFFSET_FILL)
        gl.glEnable(gl.GL_SCISSOR_TEST)
        gl.glScissor(left, bottom, right - left, top - bottom)
        gl.glClearDepth(0)
        gl.glClear(gl.GL_DEPTH_BUFFER_BIT)
        gl.glViewport(1, 1, size - 2, size - 2)
        try:
            yield
        finally:  # the rest MuJoCo sets itself
            gl.glDisable(gl.GL_SCISSOR_TEST)
            gl.glDisable(gl.GL_POLYGON_OFFSET_FILL)
            gl.glColorMask(*4 * (gl.GL_TRUE,))

    def _draw(self, kind: int, data: int, pose: bytes) -> None:
        """Draw a geom by the same display lists and the same operations on matrices as MuJoCo."""
        gl, context, builtin = self._gl, self._context, self._context.baseBuiltin
        numbers = np.frombuffer(pose, np.float32)
        size = numbers[12:]
        turn = np.eye(4, dtype=np.float32)
        turn[:3, :3] = numbers[3:12].reshape(3, 3).T  # by columns
        gl.glPushMatrix()
        gl.glTranslatef(*numbers[:3])
        gl.glMultMatrixf(turn)
        if kind == MESH:
            gl.glCallList(context.baseMesh + data)
        elif kind == PLANE and data >= 0:
            gl.glCallList(context.basePlane + data + 1)
        elif kind == PLANE:
            gl.glScalef(size[0], size[1], 1.0)
            gl.glCallList(context.basePlane)
        else:
            gl.glScalef(*size)
            gl.glCallList(builtin + (OPEN_CYLINDER if kind == CAPSULE else LISTS[kind]))
        if kind == CAPSULE:
            radius = np.float32(0.5 * (size[0] + size[1]))
            gl.glScalef(1.0, 1.0, radius / size[2])
            gl.glTranslatef(0.0, 0.0, (size[2] - radius) / radius)
            gl.glCallList(builtin + SPHERE_TOP)
            gl.glTranslatef(0.0, 0.0, 2 * (radius - size[2]) / radius)
            gl.glCallList(builtin + SPHERE_BOTTOM)
        gl.glPopMatrix()


def look_along(position: NDArray[np.float32], direction: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the matrix (4, 4) from the world to a light's view, in float32, operation by operation as in MuJoCo.

    Source: `mjr_orthoVec` and `mjr_lookAt` in `render_util.c`.
    """
    above = _cross(direction, np.array([-1, 0, 0], np.float32))
    if _dot(above, above) <= 0.01:
        above = _cross(direction, np.array([0, 1, 0], np.float32))
    forward = _unit(direction)
    right = _unit(_cross(forward, _unit(above)))
    up = _unit(_cross(right, forward))
    view = np.eye(4, dtype=np.float32)
    view[:3, :3] = right, up, -forward
    view[:3, 3] = -_dot(right, position), -_dot(up, position), _dot(forward, position)
    return view


def _cross(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]], dtype=np.float32)


def _dot(a: NDArray[np.float32], b: NDArray[np.float32]) -> np.float32:
    return np.float32(a[0] * b[0] + a[1] * b[1] + a[2] * b[2])


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector * (np.float32(1) / np.sqrt(_dot(vector, vector)))


def _is_directional(light: Any) -> bool:
    if hasattr(light, "directional"):
        return bool(light.directional)
    return bool(light.type == mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
