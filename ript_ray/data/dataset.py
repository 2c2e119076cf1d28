"""Datasets of the supervised stages: training and held-out demonstrations, from files or recorded now."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import Benchmark
from ript_ray.checks import require
from ript_ray.config.data import Demonstrations
from ript_ray.config.experiment import Experiment
from ript_ray.data.demonstrations import Demonstration, record_demonstrations, require_expert, require_scripted
from ript_ray.data.hdf5 import find_file, image_bytes, is_scripted, read_demonstrations, recorded_rendering
from ript_ray.data.windows import make_windows
from ript_ray.errors import ConfigError
from ript_ray.policies.base import PolicyConfig
from ript_ray.policies.supervised import SupervisedTask, Windows
from ript_ray.runtime.heartbeat import with_heartbeat

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SupervisedDataset:
    """Windows of the demonstrations.

    Attributes:
        training: Windows of the training demonstrations.
        held_out: Windows of the held-out demonstrations, or None.
    """

    training: Windows
    held_out: Windows | None

    def without(self, names: Collection[str]) -> "SupervisedDataset":
        """Return the same windows without some sensors or cameras."""
        return SupervisedDataset(self.training.without(names), self.held_out and self.held_out.without(names))


class DemonstrationSource(Protocol):
    """Source of the demonstrations of a task. It alone selects them, for the supervised stages and for contexts."""

    def read(self, task: str) -> tuple[Sequence[Demonstration], Sequence[Demonstration]]:
        """Return the training and the held-out demonstrations of a task."""
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
        settings: Source, number and selection of the demonstrations.
        policy: Configuration with the sensors to load and the chunk length.
        cameras: The cameras to load: the policy's, or none for stages that do not read images.
        max_steps: Length limit of an expert's attempt, in environment steps.
        seed: The experiment's seed.

    Raises:
        RiptError: Files are missing, corrupt, or have too few demonstrations, or an expert failed too often.
    """
    num_each = settings.num_per_task + settings.num_held_out
    source_name = f"reading from {settings.folder}" if settings.folder else "recording"
    logger.info("%s, demonstrations per task: %d, tasks: %d", source_name, num_each, len(tasks))
    sensors = policy.sensors
    source = open_source(
        benchmark, tasks, settings=settings, sensors=sensors, cameras=cameras, max_steps=max_steps, seed=seed
    )
    training: list[Demonstration] = []
    held_out: list[Demonstration] = []
    for task in with_heartbeat(tasks, f"{source_name}, tasks", len(tasks)):
        chosen, rest = source.read(task)
        training += chosen
        held_out += rest
    return SupervisedDataset(
        make_windows(training, policy.chunk_length),
        make_windows(held_out, policy.chunk_length) if held_out else None,
    )


def require_demonstrations(experiment: Experiment) -> None:
    """Check that demonstrations that are learned from are there and fit, before anything else is begun.

    Of each task one demonstration is read, without its images. Without a folder, there must be a scripted expert.

    Raises:
        RiptError: Files are missing, corrupt, have too few demonstrations or other sizes; or there is no expert.
    """
    benchmark, settings, policy = experiment.benchmark, experiment.demos, experiment.policy
    if settings.folder is None:
        try:
            require_scripted(benchmark, experiment.tasks)
        except ConfigError as error:
            raise ConfigError(f"without demos.folder, demonstrations are recorded: {error}") from None
        environment = benchmark.make(experiment.tasks[0])
        require_expert(benchmark, environment, experiment.tasks[0])
        environment.close()
        return
    cameras = read_cameras(policy, experiment.supervised_tasks)
    source = _Files(benchmark, experiment.tasks, settings, settings.folder, sensors=policy.sensors, cameras=cameras)
    for task in experiment.tasks:
        source.require_fit(task)


def origin_of_demonstrations(experiment: Experiment) -> Literal["none", "scripted", "by others"]:
    """Return who performs the demonstrations that a run learns from or takes its contexts from, if it uses any.

    Raises:
        RiptError: Files are missing or corrupt.
    """
    if not experiment.supervised_tasks and not experiment.takes_demonstrated_contexts:
        return "none"
    folder, benchmark = experiment.demos.folder, experiment.benchmark
    if folder is None:
        return "scripted"
    paths = [find_file(folder, benchmark.demonstration_path(task).name) for task in experiment.tasks]
    return "scripted" if any(map(is_scripted, paths)) else "by others"


def read_cameras(policy: PolicyConfig, tasks: Sequence[SupervisedTask]) -> tuple[str, ...]:
    """Return the cameras whose images supervised stages read."""
    return policy.cameras if any(task.reads_images for task in tasks) or not policy.sensors else ()


def open_source(
    benchmark: Benchmark,
    tasks: Sequence[str],
    *,
    settings: Demonstrations,
    sensors: tuple[str, ...],
    cameras: tuple[str, ...],
    max_steps: int,
    seed: int,
) -> DemonstrationSource:
    """Return the source of the demonstrations that `settings` select; see `load_dataset`."""
    if settings.folder is None:
        return _Expert(benchmark.with_cameras(cameras), settings, max_steps, seed)
    return _Files(benchmark, tasks, settings, settings.folder, sensors=sensors, cameras=cameras)


@dataclass(frozen=True)
class _Expert:
    """Scripted experts that are recorded now."""

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
        """Find and choose all demonstrations before reading any."""
        self._benchmark = benchmark
        self._names = cameras + sensors
        self._paths = {task: find_file(folder, benchmark.demonstration_path(task).name) for task in tasks}
        if cameras:
            for path in self._paths.values():
                _require_same_rendering(benchmark, path)
        self._chosen: dict[str, tuple[list[int], list[int]]] = {}
        num_bytes = 0
        for task, path in self._paths.items():
            sizes = image_bytes(path, cameras)
            chosen, held_out = self._chosen[task] = choose(len(sizes), settings, where=path)
            num_bytes += sum(sizes[index] for index in chosen + held_out)
        self._on_demand = num_bytes > settings.max_memory_bytes

    def read(self, task: str) -> tuple[Sequence[Demonstration], Sequence[Demonstration]]:
        """Read the task's file; see `DemonstrationSource`."""
        chosen, held_out = self._chosen[task]
        demonstrations = self._read(task, chosen + held_out, on_demand=self._on_demand)
        return demonstrations[: len(chosen)], demonstrations[len(chosen) :]

    def require_fit(self, task: str) -> None:
        """Check that a task has enough demonstrations, and that the first chosen one has the benchmark's sizes.

        Images may have another size: policies scale them.
        """
        path, spec = self._paths[task], self._benchmark.spec
        (first,) = self._read(task, self._chosen[task][0][:1], on_demand=True)
        sensors = {name: rows for name, rows in first.observations.items() if name in spec.state_dims}
        found = {name: rows[np.array([0])].size for name, rows in sensors.items()}
        found["actions"] = first.actions_TA[0].size
        expected = {**spec.state_dims, "actions": spec.action_dim}
        wrong = [
            f"{name} of length {found[name]}, not {expected[name]}" for name in found if found[name] != expected[name]
        ]
        require(not wrong, f"{path} does not fit {spec.name}: it has {', '.join(wrong)}")

    def _read(self, task: str, chosen: Sequence[int], *, on_demand: bool) -> tuple[Demonstration, ...]:
        path = self._paths[task]
        demonstrations = read_demonstrations(
            path,
            instruction=self._benchmark.instruction(task),
            sensors=self._names,
            chosen=chosen,
            on_demand=on_demand,
        )
        if (known := self._benchmark.evaluation_states(task)) is not None:
            _require_shape(known.shape[1:], [each.initial_state for each in demonstrations], path)
        return demonstrations


def _require_shape(shape: tuple[int, ...], states: Sequence[NDArray[np.float64] | None], path: Path) -> None:
    for state in states:
        if state is not None and state.shape != shape:
            raise ConfigError(f"{path} is of another scene: its states have the shape {state.shape}, not {shape}")


def _require_same_rendering(benchmark: Benchmark, path: Path) -> None:
    """Check that the images of a file were rendered with the benchmark's settings.

    Raises:
        ConfigError: They were not.
    """
    settings = benchmark.render_settings
    for name, recorded in recorded_rendering(path, settings).items():
        option, expected = name.replace("_", "-"), settings[name]
        require(
            recorded == expected, f"{path} was recorded with {option} {recorded}, but benchmark.{option} is {expected}"
        )


def choose(num_available: int, settings: Demonstrations, *, where: Path) -> tuple[list[int], list[int]]:
    """Choose the training and the held-out demonstrations of a file, as indices from 0.

    Args:
        num_available: Demonstrations in the file.
        settings: Number of each, and the selection.
        where: The file, for the message.

    Raises:
        ConfigError: There are too few.
    """
    num_needed = settings.num_per_task + settings.num_held_out
    if num_available < num_needed:
        raise ConfigError(
            f"{where} contains {num_available} demonstrations, fewer than demos.num-per-task {settings.num_per_task} "
            f"and demos.num-held-out {settings.num_held_out} together"
        )
    chosen = list(range(settings.num_per_task))
    if settings.selection == "spread":
        chosen = np.linspace(0, num_available - 1, settings.num_per_task, dtype=int).tolist()
    rest = [index for index in range(num_available) if index not in chosen]
    return chosen, rest[: settings.num_held_out]
