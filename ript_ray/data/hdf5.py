"""Demonstrations in HDF5 files, one per task, in the layout that QueST's and LIBERO's loaders read.

    data                        total, env_args; recipe, versions (how this file was recorded)
      demo_0                    num_samples, attempt
        actions                 (T, A) float32
        obs/<sensor>            (T + 1, ...), the observation before each action and the final one; LIBERO's have T rows
        states                  (1, D) float64, the initial state; LIBERO's files have T rows, QueST's none
        reward, success         (T,) float32, 1 where the task is solved
        terminated, truncated   (T,) bool

Images are compressed (gzip, one frame per chunk), transparently to readers. A file is renamed to its final name when it
is complete, so files under final names are never partial. Files of others are refused if they read other files: by
external links, external storage or virtual datasets.
"""

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ript_ray.data.demonstrations import Demonstration, ExpertEpisode
from ript_ray.errors import RiptError
from ript_ray.policies.supervised import Rows
from ript_ray.storage.atomic import fsync_path, os_errors_as_storage_error
from ript_ray.storage.reading import parse_json

SUFFIX = ".hdf5"

NAMES_IN_FILES = {"state": "obs_gt"}
"""Sensors whose names in the files differ from the benchmark's."""

Recipe = dict[str, Any]
"""All settings that determine the content of a file, as JSON."""


class DemonstrationWriter:
    """Writes the demonstrations of one task; must end with `finish` or `discard`."""

    def __init__(self, path: Path, task: str, *, recipe: Recipe, versions: dict[str, str]):
        """Open the file under a temporary name.

        Args:
            path: Final name of the file; an existing file is replaced at the end.
            task: The task.
            recipe: The settings that determine the content.
            versions: Versions of the packages it is recorded with.

        Raises:
            StorageError: The file cannot be written, or another process is writing it.
        """
        self._path = path
        self._unfinished = path.with_name(f".{path.name}.unfinished")
        self._num_episodes = 0
        with os_errors_as_storage_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = h5py.File(self._unfinished, "w")
            self._file.create_group("data").attrs.update(
                {
                    "total": 0,
                    "env_args": json.dumps({"env_name": task, "env_type": 2, "env_kwargs": {}}),
                    "recipe": json.dumps(recipe, sort_keys=True),
                    "versions": json.dumps(versions, sort_keys=True),
                }
            )

    def finish(self) -> None:
        """Flush the file and rename it to its final name.

        Raises:
            StorageError: The file cannot be written.
        """
        with os_errors_as_storage_error(self._path):
            self._file.close()
            fsync_path(self._unfinished)
            self._unfinished.replace(self._path)
            fsync_path(self._path.parent)

    def discard(self) -> None:
        """Delete the unfinished file."""
        with contextlib.suppress(OSError, RuntimeError):  # deleted even if it cannot be closed
            self._file.close()
        self._unfinished.unlink(missing_ok=True)

    def add(self, episode: ExpertEpisode, *, attempt: int, is_truncated: bool) -> None:
        """Append an episode.

        Raises:
            StorageError: The file cannot be written.
        """
        num_actions = len(episode.actions_TA)
        at_end = np.arange(num_actions) == num_actions - 1
        with os_errors_as_storage_error(self._path):
            group = self._file.create_group(f"data/demo_{self._num_episodes}")
            group.attrs.update({"num_samples": num_actions, "attempt": attempt})
            group["actions"] = episode.actions_TA
            group["states"] = episode.initial_state[np.newaxis]
            group["reward"] = group["success"] = (at_end & episode.success).astype(np.float32)
            group["terminated"] = at_end & episode.success
            group["truncated"] = at_end & is_truncated
            for name, rows in episode.observations.items():
                packing = {"chunks": (1, *rows.shape[1:]), "compression": "gzip", "compression_opts": 1}
                options = packing if rows.dtype == np.uint8 else {}
                group.create_dataset(f"obs/{NAMES_IN_FILES.get(name, name)}", data=rows, **options)
            self._file["data"].attrs["total"] += num_actions
            self._num_episodes += 1


def find_file(folder: Path, name: str) -> Path:
    """Find the demonstration file of a task, by its name, in a folder or its subfolders.

    Raises:
        RiptError: There is none, or there are several.
    """
    found = sorted(folder.rglob(name))
    if not found:
        there = sorted({path.name for path in folder.rglob(f"*{SUFFIX}")})
        raise RiptError(
            f"{folder} has no demonstration file {name} "
            + (f"(there are {', '.join(there)})" if there else "(there is none of any task)")
        )
    if len(found) > 1:
        raise RiptError(f"{folder} has several files {name}: {', '.join(map(str, found))}")
    return found[0]


def read_recipe(path: Path) -> Recipe:
    """Read the settings that a file was recorded with.

    Raises:
        RiptError: The file is corrupt, or was not recorded by ript-ray.
    """
    with _reading(path) as data:
        if "recipe" not in data.attrs:
            raise RiptError(f"{path} was not recorded by ript-ray: it has no recipe")
        recipe = _recipe_in(data)
        recipe.get("benchmark", {}).setdefault("kind", "metaworld")  # older files are all MetaWorld's
        return recipe


def recorded_rendering(path: Path, names: Iterable[str]) -> dict[str, Any]:
    """Read the named render settings that a file was recorded with; empty if ript-ray did not record it.

    Raises:
        RiptError: The file is corrupt.
    """
    with _reading(path) as data:
        benchmark = _recipe_in(data)["benchmark"] if "recipe" in data.attrs else {}
        return {name: benchmark[name] for name in names if name in benchmark}


def read_demonstrations(
    path: Path,
    *,
    instruction: str,
    sensors: Sequence[str],
    chosen: Sequence[int] | None = None,
    on_demand: bool = False,
) -> tuple[Demonstration, ...]:
    """Read demonstrations for the supervised stages.

    Args:
        path: A file recorded by ript-ray or by QueST's authors.
        instruction: The language instruction of the task.
        sensors: Sensors and cameras to read.
        chosen: Indices of the demonstrations, in the order of recording; all if not given.
        on_demand: Leave images in the file and read them when they are indexed.

    Raises:
        RiptError: The file is corrupt or of another format, has too few demonstrations, lacks a sensor, or an array has
            another shape or type than it must have.
    """
    with _reading(path) as data:
        groups = _demos(data, path, None if chosen is None else max(chosen) + 1)
        demonstrations = []
        for group in groups if chosen is None else [groups[index] for index in chosen]:
            actions_TA = _numbers(group, path, "actions", min_rows=1)[:].astype(np.float32)
            num_rows = len(actions_TA)
            observations: dict[str, Rows] = {}
            for name in sensors:
                array = _numbers(group, path, f"obs/{NAMES_IN_FILES.get(name, name)}", min_rows=num_rows)
                if on_demand and array.dtype == np.uint8:
                    observations[name] = StoredRows(path, array.name, num_rows)
                else:
                    is_float = array.dtype.kind == "f"  # LIBERO stores 8 bytes each
                    observations[name] = array[:num_rows].astype(np.float32 if is_float else array.dtype, copy=False)
            demonstrations.append(Demonstration(instruction, observations, actions_TA, _initial_state(group, path)))
        return tuple(demonstrations)


@dataclass(frozen=True)
class StoredRows:
    """Observations of one sensor in one demonstration, read from the file row by row.

    Attributes:
        path: The file.
        name: Name of the array in the file.
        num_rows: Number of rows, without the final observation.
    """

    path: Path
    name: str
    num_rows: int

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        """Read the given rows, in their order.

        Raises:
            RiptError: The file is corrupt.
        """
        try:
            array = _array(_open_once(self.path), self.path, self.name)
            return np.stack([array[row] for row in rows])
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise RiptError(f"{self.path} is corrupt or not an HDF5 file: {error}") from error


def _open(path: Path) -> h5py.File:
    """Open a file for reading.

    Raises:
        RiptError: A link leads out of the file.
    """
    file = h5py.File(path, "r")
    leading_out: list[str] = []

    def check(name: bytes, link: h5py.h5l.LinkInfo) -> None:
        if link.type not in (h5py.h5l.TYPE_HARD, h5py.h5l.TYPE_SOFT):
            leading_out.append(name.decode(errors="replace"))

    file.id.links.visit(check, info=True)
    if leading_out:
        file.close()
        raise RiptError(f"{path} is refused: its link {leading_out[0]} leads out of the file")
    return file


_open_once = functools.lru_cache(maxsize=64)(_open)
"""Keeps files open, for rows that are read on demand."""


def image_bytes(path: Path, cameras: Sequence[str]) -> tuple[int, ...]:
    """Return how much memory the images of these cameras take in each demonstration of a file, in bytes.

    Raises:
        RiptError: The file is corrupt or of another format.
    """
    with _reading(path) as data:
        groups = [group.get("obs", {}) for group in _demos(data, path, None)]
        return tuple(sum(group[name].nbytes for name in cameras if name in group) for group in groups)


def _demos(data: h5py.Group, path: Path, num_wanted: int | None) -> list[h5py.Group]:
    names = sorted((name for name in data if name.startswith("demo_")), key=lambda name: int(name[5:]))
    if num_wanted is not None and len(names) < num_wanted:
        raise RiptError(f"{path} contains {len(names)} demonstrations, fewer than the {num_wanted} needed")
    return [data[name] for name in names[:num_wanted]]


def _numbers(group: h5py.Group, path: Path, name: str, *, min_rows: int) -> h5py.Dataset:
    """Return an array of a demonstration: rows of numbers, or images.

    Raises:
        RiptError: It is missing, or has another shape or type.
    """
    if name not in group:
        there = ", ".join(sorted(group.get("obs", ())))
        raise RiptError(f"{path}: {group.name} has no {name}; its observations are {there}")
    array = _array(group, path, name)
    is_image = array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] == 3
    if not is_image and not (array.dtype.kind in "fiub" and array.ndim == 2):
        wanted = "rows of numbers (T, n) or uint8 images (T, height, width, 3)"
        raise RiptError(f"{path}: {array.name} must be {wanted}, not {array.dtype} of shape {array.shape}")
    if len(array) < min_rows:
        raise RiptError(f"{path}: {array.name} has {len(array)} rows, fewer than the {min_rows} needed")
    return array


def _initial_state(group: h5py.Group, path: Path) -> NDArray[np.float64] | None:
    """Read the first state of a demonstration; None in files without states, such as QueST's own."""
    if "states" not in group or group["states"].shape[0] == 0:
        return None
    return np.array(_array(group, path, "states")[0], dtype=np.float64)


def _array(group: h5py.Group, path: Path, name: str) -> h5py.Dataset:
    """Return an array of a file.

    Raises:
        RiptError: Its values are in other files.
    """
    array = group[name]
    if array.is_virtual or array.external:
        raise RiptError(f"{path} is refused: the values of {array.name} are in other files")
    return array


def _recipe_in(data: h5py.Group) -> Recipe:
    recipe = parse_json(data.attrs["recipe"])
    if not isinstance(recipe, dict) or not isinstance(recipe.get("benchmark", {}), dict):
        raise ValueError("its recipe is no object, or has a benchmark that is none")
    return recipe


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[h5py.Group]:
    """Open the group `data` of a file; errors of the HDF5 library become RiptErrors that name the file."""
    if not path.is_file():
        raise RiptError(f"there is no demonstration file {path}")
    try:
        with _open(path) as file:
            if not isinstance(file.get("data"), h5py.Group):
                raise RiptError(f"{path} is not a demonstration file: it has no group 'data'")
            yield file["data"]
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise RiptError(f"{path} is corrupt or not an HDF5 file: {error}") from error
