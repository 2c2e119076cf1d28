"""One MuJoCo model for all environments of a task in this process.

A model takes 20 MB, most of it meshes and textures, and the eight models of a group drive each other out of the
processor's caches. Resets change nothing in it but the positions of bodies and sites: each environment keeps its own
and puts them into the model when it uses it next.
"""

import threading
import weakref
from types import TracebackType
from typing import Any

import mujoco
import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from numpy.typing import NDArray

Positions = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Of bodies and of sites, each (number, 3), in metres."""


class SharedModel:
    """A compiled model, and the environment that its positions belong to now."""

    def __init__(self, path: str):
        """Compile a file."""
        self.model = mujoco.MjModel.from_xml_path(path)
        self.positions: Positions = (self.model.body_pos, self.model.site_pos)
        self.compiled: Positions = (self.model.body_pos.copy(), self.model.site_pos.copy())
        self.user: ModelUse | None = None
        self.lock = threading.RLock()


class ModelUse:
    """An environment's use of a shared model, as a context: within it, the model has the environment's positions."""

    def __init__(self, shared: SharedModel):
        """Begin with the positions of the file."""
        self._shared = shared
        self._own: Positions = (shared.compiled[0].copy(), shared.compiled[1].copy())

    @property
    def model(self) -> Any:
        """The model."""
        return self._shared.model

    def __enter__(self) -> None:
        shared = self._shared
        shared.lock.acquire()
        if shared.user is not self:
            if shared.user is not None:
                _copy(shared.user._own, shared.positions)
            _copy(shared.positions, self._own)
            shared.user = self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shared.lock.release()


class SharesModel(SawyerXYZEnv):  # type: ignore[misc]  # the package has no types
    """A stock environment that does not compile a model of its own; to be built and used within `use`."""

    use: ModelUse

    def _initialize_simulation(self) -> tuple[Any, Any]:
        return self.use.model, mujoco.MjData(self.use.model)


_MODELS: weakref.WeakValueDictionary[str, SharedModel] = weakref.WeakValueDictionary()
_MODELS_LOCK = threading.Lock()


def use_of(task: str, path: str) -> ModelUse:
    """Return another use of a task's model, which is compiled for the first one and freed with the last."""
    with _MODELS_LOCK:
        shared = _MODELS.get(task)
        if shared is None:
            shared = _MODELS[task] = SharedModel(path)
        return ModelUse(shared)


def _copy(to: Positions, of: Positions) -> None:
    for target, source in zip(to, of, strict=True):
        np.copyto(target, source)
