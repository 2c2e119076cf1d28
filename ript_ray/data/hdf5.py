"""Demonstrations in HDF5 files, one per task, in the layout that QueST's and LIBERO's loaders read.

    data                        total, env_args; recipe, versions (what this file was recorded with)
      demo_0                    num_samples, attempt
        actions                 (T, A) float32
        obs/<sensor>            (T + 1, ...), what was seen before each action and at the end
        states                  (1, D) float64, the initial state; LIBERO's files hold T rows, QueST's none
        reward, success         (T,) float32, 1 where the task was solved
        terminated, truncated   (T,) bool

Pictures are compressed (gzip, one frame per chunk), which readers do not notice. A file gets its name when it is
complete: what lies under a final name is whole.
"""

import contextlib
import functools
import json
from collections.abc import Iterator, Sequence
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

SUFFIX = ".hdf5"

NAMES_IN_FILES = {"state": "obs_gt"}
"""Sensors that the layout calls otherwise than the benchmark does."""

Recipe = dict[str, Any]
"""What the content of a file depends on, as JSON."""


class DemonstrationWriter:
    """Writes the demonstrations of one task, episode by episode; ends with `finish` or `discard`."""

    def __init__(self, path: Path, task: str, *, recipe: Recipe, versions: dict[str, str]):
        """Begin under a temporary name.

        Args:
            path: The file's final name; what is there is replaced at the end.
            task: The task.
            recipe: What the content depends on.
            versions: What it is recorded with.

        Raises:
            StorageError: The disk does not take it, or another process is writing it.
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
        """Give the file its name.

        Raises:
            StorageError: The disk does not take it.
        """
        with os_errors_as_storage_error(self._path):
            self._file.close()
            fsync_path(self._unfinished)
            self._unfinished.replace(self._path)
            fsync_path(self._path.parent)

    def discard(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError, RuntimeError):  # what does not close any more is deleted all the same
            self._file.close()
        self._unfinished.unlink(missing_ok=True)

    def add(self, episode: ExpertEpisode, *, attempt: int, is_truncated: bool) -> None:
        """Append an episode.

        Raises:
            StorageError: The disk does not take it.
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


def find_file(folder: Path, task: str) -> Path:
    """The one demonstration file of a task in a folder or below it.

    Raises:
        RiptError: There is none, or there are several.
    """
    found = sorted(folder.rglob(task + SUFFIX))
    if not found:
        there = sorted({path.stem for path in folder.rglob(f"*{SUFFIX}")})
        raise RiptError(
            f"{folder} holds no demonstrations of {task}: no file {task}{SUFFIX} "
            + (f"(there are {', '.join(there)})" if there else "(there are none of any task)")
        )
    if len(found) > 1:
        raise RiptError(f"{folder} holds several files for {task}: {', '.join(map(str, found))}")
    return found[0]


def read_recipe(path: Path) -> Recipe:
    """What a file of ours was recorded with.

    Raises:
        RiptError: It is damaged or foreign.
    """
    with _reading(path) as data:
        if "recipe" not in data.attrs:
            raise RiptError(f"{path} was not recorded by ript-ray: it says nothing of how it was made")
        recipe: Recipe = json.loads(data.attrs["recipe"])
        recipe.get("benchmark", {}).setdefault("kind", "metaworld")  # older files know no other
        return recipe


def recorded_rendering(path: Path) -> dict[str, Any]:
    """How the pictures of a file of ours look: `image_size` and `rendering`; nothing is known of others'.

    Raises:
        RiptError: The file is damaged.
    """
    with _reading(path) as data:
        benchmark = json.loads(data.attrs["recipe"])["benchmark"] if "recipe" in data.attrs else {}
        return {name: benchmark[name] for name in ("image_size", "rendering") if name in benchmark}


def read_demonstrations(
    path: Path, *, instruction: str, sensors: Sequence[str], chosen: Sequence[int] | None = None, stored: bool = False
) -> tuple[Demonstration, ...]:
    """Demonstrations for the supervised stages.

    Args:
        path: A file of ours or of QueST's.
        instruction: The task in words.
        sensors: Sensors and cameras to read; nothing else is.
        chosen: Which of them, counted from 0 in the order they were recorded in; all unless given.
        stored: Leave pictures in the file, to be read when they are asked for.

    Raises:
        RiptError: The file is damaged, foreign, or holds too few demonstrations or another sensor.
    """
    with _reading(path) as data:
        groups = _demos(data, path, None if chosen is None else max(chosen) + 1)
        demonstrations = []
        for group in groups if chosen is None else [groups[index] for index in chosen]:
            actions_TA = _rows(group, path, "actions").astype(np.float32)
            observations: dict[str, Rows] = {}
            for name in sensors:
                within = f"obs/{NAMES_IN_FILES.get(name, name)}"
                if stored and within in group and group[within].dtype == np.uint8:
                    observations[name] = StoredRows(path, f"{group.name}/{within}", len(actions_TA))
                else:
                    observations[name] = _rows(group, path, within, end=len(actions_TA))
            demonstrations.append(Demonstration(instruction, observations, actions_TA))
        return tuple(demonstrations)


@dataclass(frozen=True)
class StoredRows:
    """What one sensor saw in one demonstration, read from its file row by row.

    Attributes:
        path: The file.
        name: The array in it.
        num_rows: Its rows, but for what lies behind the last action.
    """

    path: Path
    name: str
    num_rows: int

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        """The rows asked for, in that order.

        Raises:
            RiptError: The file is damaged.
        """
        try:
            array = _open_file(self.path)[self.name]
            return np.stack([array[row] for row in rows])
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise RiptError(f"{self.path} is damaged or no HDF5 file: {error}") from error


@functools.lru_cache(maxsize=64)
def _open_file(path: Path) -> h5py.File:
    return h5py.File(path, "r")


def count_demonstrations(path: Path) -> tuple[int, int]:
    """How many demonstrations a file holds, and how many bytes all their pictures take in memory.

    Raises:
        RiptError: The file is damaged or foreign.
    """
    with _reading(path) as data:
        groups = _demos(data, path, None)
        pictures = [array for group in groups for array in group.get("obs", {}).values() if array.dtype == np.uint8]
        return len(groups), sum(array.size for array in pictures)


def read_initial_states(path: Path, num_states: int | None = None) -> tuple[NDArray[np.float64], ...]:
    """The first state of each demonstration, in the order they were recorded in; of LIBERO's files, too.

    Args:
        path: The file.
        num_states: Of the first so many demonstrations; of all unless given.

    Raises:
        RiptError: The file is damaged, foreign, or holds too few demonstrations or no states.
    """
    with _reading(path) as data:
        states = []
        for group in _demos(data, path, num_states):
            if "states" not in group or group["states"].shape[0] == 0:
                raise RiptError(f"{path}: {group.name} holds no states, so contexts cannot be drawn from it")
            states.append(np.array(group["states"][0], dtype=np.float64))
        return tuple(states)


def _demos(data: h5py.Group, path: Path, num_wanted: int | None) -> list[h5py.Group]:
    names = sorted((name for name in data if name.startswith("demo_")), key=lambda name: int(name[5:]))
    if num_wanted is not None and len(names) < num_wanted:
        raise RiptError(f"{path} holds {len(names)} demonstrations, fewer than the {num_wanted} asked for")
    return [data[name] for name in names[:num_wanted]]


def _rows(group: h5py.Group, path: Path, name: str, end: int | None = None) -> NDArray[Any]:
    if name not in group:
        there = ", ".join(sorted(group.get("obs", ())))
        raise RiptError(f"{path}: {group.name} holds no {name}; its observations are {there}")
    rows: NDArray[Any] = group[name][:end]
    return rows


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[h5py.Group]:
    """The group `data` of a file; what the library raises within says what is wrong with the file."""
    if not path.is_file():
        raise RiptError(f"there is no demonstration file {path}")
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get("data"), h5py.Group):
                raise RiptError(f"{path} is no demonstration file: it has no group 'data'")
            yield file["data"]
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise RiptError(f"{path} is damaged or no HDF5 file: {error}") from error
