"""Read files of init states: .npz, or a pickled array in a zip file, as `torch.save` writes it.

A pickle may run any code when it is read. Here it may name what makes a NumPy array, and nothing else.
"""

import codecs
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
    **{
        (f"numpy.{core}.multiarray", "_reconstruct"): np.array([0]).__reduce__()[0]  # its module differs by version
        for core in ("core", "_core")
    },
}
"""What a pickled array of numbers names."""


class InitFileError(ValueError):
    """A file of init states is missing, damaged, or holds something else."""


def read_init_states(folder: Path, task: str) -> NDArray[np.float64]:
    """Return the init states (N, n) of a task.

    Args:
        folder: The folder of the task's suite.
        task: Name of the task.

    Raises:
        InitFileError: There is no file, it is damaged, or it holds something else.
    """
    pickled = folder / f"{task}.pruned_init"
    converted = pickled.with_name(f"{pickled.name}.npz")
    path = converted if converted.is_file() else pickled
    try:
        states = _unpickled(path) if path == pickled else np.load(path, allow_pickle=False)["states"]
        states = np.asarray(states, dtype=np.float64)
    except Exception as error:  # a damaged file may raise anything
        raise InitFileError(f"{path} cannot be read as init states: {error}") from error
    if states.ndim != 2 or not len(states) or not np.isfinite(states).all():
        raise InitFileError(f"{path} holds no init states (N, n), but numbers of shape {states.shape}")
    return states


def _unpickled(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith("data.pkl"))
        return _ArraysOnly(io.BytesIO(archive.read(name))).load()


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of an array")
        return ALLOWED[module, name]
