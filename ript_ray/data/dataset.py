"""The demonstrations that the supervised stages train on, and those that their error is measured on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ript_envs.contract import Benchmark
from ript_ray.checks import require
from ript_ray.config.data import Demonstrations
from ript_ray.data.demonstrations import Demonstration, record_demonstrations
from ript_ray.data.hdf5 import count_demonstrations, find_file, read_demonstrations, recorded_rendering
from ript_ray.data.windows import make_windows
from ript_ray.errors import ConfigError
from ript_ray.policies.base import PolicyConfig
from ript_ray.policies.supervised import Windows

MAX_BYTES_IN_MEMORY = 4 * 2**30
"""Images of all demonstrations together stay in their files beyond this."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SupervisedDataset:
    """Windows of the demonstrations.

    Attributes:
        training: What the stages train on.
        held_out: What they do not, or none.
    """

    training: Windows
    held_out: Windows | None


class DemonstrationSource(Protocol):
    """Where the demonstrations of a task come from."""

    def read(self, task: str) -> tuple[Sequence[Demonstration], Sequence[Demonstration]]:
        """Return the demonstrations to train on, and those to hold out."""
        ...


def load_dataset(
    benchmark: Benchmark,
    tasks: Sequence[str],
    *,
    settings: Demonstrations,
    policy: PolicyConfig,
    cameras: tuple[str, ...],
    max_steps: int,
    seed: int,
) -> SupervisedDataset:
    """Read the demonstrations of all tasks from files, or record them.

    Args:
        benchmark: The benchmark of the tasks.
        tasks: The tasks.
        settings: Where demonstrations come from, how many, and which.
        policy: The sensors that are read, and the length of the chunks.
        cameras: The cameras that are read: the policy's, or none for stages that see no images.
        max_steps: When an expert's attempt has failed, in environment steps.
        seed: The experiment's seed.

    Raises:
        RiptError: Files are missing, damaged, or have too few demonstrations, or an expert failed too often.
    """
    action = f"reading from {settings.folder}" if settings.folder else "recording"
    logger.info("%s: %d demonstration(s) of each of %d tasks", action, settings.num_per_task, len(tasks))
    source: DemonstrationSource
    if settings.folder is None:
        source = _Expert(benchmark.with_cameras(cameras), settings, max_steps, seed)
    else:
        source = _Files(benchmark, tasks, settings, settings.folder, sensors=policy.sensors, cameras=cameras)
    training: list[Demonstration] = []
    held_out: list[Demonstration] = []
    for task in tasks:
        chosen, rest = source.read(task)
        training += chosen
        held_out += rest
    return SupervisedDataset(
        make_windows(training, policy.chunk_length),
        make_windows(held_out, policy.chunk_length) if held_out else None,
    )


@dataclass(frozen=True)
class _Expert:
    """Scripted experts, recorded now."""

    benchmark: Benchmark
    settings: Demonstrations
    max_steps: int
    seed: int

    def read(self, task: str) -> tuple[Sequence[Demonstration], Sequence[Demonstration]]:
        """Record the task; see `DemonstrationSource`."""
        settings = self.settings
        made = record_demonstrations(self.benchmark, task, settings=settings, max_steps=self.max_steps, seed=self.seed)
        return made[: settings.num_per_task], made[settings.num_per_task :]


class _Files:
    """HDF5 files, one per task."""

    def __init__(
        self,
        benchmark: Benchmark,
        tasks: Sequence[str],
        settings: Demonstrations,
        folder: Path,
        *,
        sensors: tuple[str, ...],
        cameras: tuple[str, ...],
    ):
        """Find and count all demonstrations before any is read."""
        self._benchmark = benchmark
        self._settings = settings
        self._names = cameras + sensors
        self._paths = {task: find_file(folder, task) for task in tasks}
        if cameras:
            for path in self._paths.values():
                _require_same_rendering(benchmark, path)
        self._counts = {task: count_demonstrations(path) for task, path in self._paths.items()}
        self._stored = sum(num_bytes for _, num_bytes in self._counts.values()) > MAX_BYTES_IN_MEMORY

    def read(self, task: str) -> tuple[Sequence[Demonstration], Sequence[Demonstration]]:
        """Read the task's file; see `DemonstrationSource`."""
        path = self._paths[task]
        chosen, held_out = choose(self._counts[task][0], self._settings, where=path)
        demonstrations = read_demonstrations(
            path,
            instruction=self._benchmark.instruction(task),
            sensors=self._names,
            chosen=chosen + held_out,
            stored=self._stored,
        )
        return demonstrations[: len(chosen)], demonstrations[len(chosen) :]


def _require_same_rendering(benchmark: Benchmark, path: Path) -> None:
    """Check that the policy will see images like those that it learns from.

    Raises:
        ConfigError: The file's images were rendered with other settings.
    """
    for name, recorded in recorded_rendering(path).items():
        option, expected = name.replace("_", "-"), benchmark.render_settings.get(name)
        require(
            recorded == expected, f"{path} was recorded with {option} {recorded}, but benchmark.{option} is {expected}"
        )


def choose(num_available: int, settings: Demonstrations, *, where: Path) -> tuple[list[int], list[int]]:
    """Choose the demonstrations of a file to train on and to hold out, counted from 0.

    Args:
        num_available: Demonstrations in the file.
        settings: How many of each, and how they are selected.
        where: The file, for the message.

    Raises:
        ConfigError: There are too few.
    """
    num_needed = settings.num_per_task + settings.num_held_out
    if num_available < num_needed:
        raise ConfigError(
            f"{where} holds {num_available} demonstrations, fewer than demos.num-per-task {settings.num_per_task} and "
            f"demos.num-held-out {settings.num_held_out} together"
        )
    chosen = list(range(settings.num_per_task))
    if settings.selection == "spread":
        chosen = np.linspace(0, num_available - 1, settings.num_per_task, dtype=int).tolist()
    rest = [index for index in range(num_available) if index not in chosen]
    return chosen, rest[: settings.num_held_out]
