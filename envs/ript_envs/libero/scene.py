"""The simulator of a LIBERO task, shared by all environments of that task in a process.

LIBERO's own environment takes seconds to build and most of a gigabyte. All that differs between two of one task is the
simulator's state, and the place of furniture that cannot move: these are kept per environment and swapped in.
"""

import weakref
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from ript_envs.libero import scenery, simulator
from ript_envs.libero.benchmark import Libero


class Scene:
    """LIBERO's own environment of a task, and its compiled model."""

    def __init__(self, task: str, settings: Libero):
        """Build it; takes seconds."""
        self.stock = simulator.build(settings.suite, task, perturbation=settings.perturbation)
        self.model: mujoco.MjModel = self.stock.sim.model._model
        if settings.simplified_meshes:
            scenery.simplify_meshes(self.model)
        if settings.small_textures:
            scenery.shrink_textures(self.model)
        self._furniture = np.array([self.stock.obj_body_id[name] for name in self.stock.fixtures_dict], dtype=int)
        self._shown: State | None = None
        weakref.finalize(self, _free, self.stock).atexit = False

    def show(self, state: "State") -> None:
        """Let LIBERO's environment and the model be those of `state`."""
        if self._shown is not state:
            self._shown = state
            self.stock.sim.data._data = state.data
            self.model.body_pos[self._furniture], self.model.body_quat[self._furniture] = state.furniture

    def draw(self, state: "State", seed: int) -> None:
        """Place all objects and furniture at random, as LIBERO's reset does."""
        self.show(state)
        # As in a model just compiled: LIBERO adds where furniture will be to where what stands in or on it is now.
        self.model.body_pos[self._furniture], self.model.body_quat[self._furniture] = 0.0, (1.0, 0.0, 0.0, 0.0)
        with simulator.seeded(seed):
            while True:
                try:
                    self.stock.reset()
                    break
                except simulator.randomization_error():  # LIBERO's own loop: some draws overlap
                    continue
        state.furniture = self.furniture

    @property
    def furniture(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Positions (n, 3) and orientations (n, 4) of the furniture in the model."""
        return self.model.body_pos[self._furniture].copy(), self.model.body_quat[self._furniture].copy()


class State:
    """What differs between two environments of one task."""

    def __init__(self, scene: Scene):
        self.data = mujoco.MjData(scene.model)
        self.furniture = scene.furniture


_SCENES: "weakref.WeakValueDictionary[tuple[object, ...], Scene]" = weakref.WeakValueDictionary()


def shared_scene(task: str, settings: Libero) -> Scene:
    """Return this process's scene of a task, which is freed with its last environment."""
    key = scene_key(task, settings)
    scene = _SCENES.get(key)
    if scene is None:
        scene = _SCENES[key] = Scene(task, settings)
    return scene


def scene_key(task: str, settings: Libero) -> tuple[object, ...]:
    """Return what identifies the compiled model of a task."""
    return settings.label, task, settings.simplified_meshes, settings.small_textures


def _free(stock: Any) -> None:
    """Free the model and the data without waiting for the garbage collector: the stock environment is a cycle."""
    stock.sim.data._data = stock.sim.model._model = None
