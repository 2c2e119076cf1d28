"""What the supervised stages of an experiment train on, and what their error is measured on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ript_envs.contract import Benchmark
from ript_ray.checks import require
from ript_ray.config.sft import Demonstrations
from ript_ray.data.demonstrations import Demonstration, record_demonstrations
from ript_ray.data.hdf5 import count_demonstrations, find_file, read_demonstrations, recorded_rendering
from ript_ray.data.windows import Windows, make_windows
from ript_ray.errors import ConfigError
from ript_ray.policies.quest.config import QuestConfig

MAX_BYTES_IN_MEMORY = 4 * 2**30
"""Pictures of all demonstrations together stay in their files beyond this."""


@dataclass(frozen=True)
class SupervisedDataset:
    """Windows of the demonstrations.

    Attributes:
        training: What the stages train on.
        held_out: What they do not, or none.
    """

    training: Windows
    held_out: Windows | None


def load_dataset(
    benchmark: Benchmark,
    tasks: Sequence[str],
    *,
    settings: Demonstrations,
    policy: QuestConfig,
    max_steps: int,
    seed: int,
) -> SupervisedDataset:
    """Read the demonstrations of all tasks from files, or record them.

    Args:
        benchmark: Where the tasks come from.
        tasks: The tasks.
        settings: Where demonstrations come from, how many, and which.
        policy: What is seen of them, and how long their chunks are.
        max_steps: When an expert's attempt has failed, in environment steps.
        seed: The experiment's.

    Raises:
        RiptError: Files are missing, damaged, or have too few demonstrations, or an expert failed too often.
    """
    if settings.folder is None:
        of_task = _expert(benchmark.with_cameras(policy.cameras), settings=settings, max_steps=max_steps, seed=seed)
    else:
        of_task = _reader(benchmark, tasks, settings.folder, settings=settings, policy=policy)
    training: list[Demonstration] = []
    held_out: list[Demonstration] = []
    for task in tasks:
        chosen, rest = of_task(task)
        training += chosen
        held_out += rest
    return SupervisedDataset(
        make_windows(training, policy.chunk_length),
        make_windows(held_out, policy.chunk_length) if held_out else None,
    )


OfTask = Callable[[str], tuple[Sequence[Demonstration], Sequence[Demonstration]]]
"""The demonstrations of a task: those to train on, and those to hold out."""


def _expert(benchmark: Benchmark, *, settings: Demonstrations, max_steps: int, seed: int) -> OfTask:
    def of_task(task: str) -> tuple[Sequence[Demonstration], Sequence[Demonstration]]:
        made = record_demonstrations(benchmark, task, settings=settings, max_steps=max_steps, seed=seed)
        return made[: settings.num_per_task], made[settings.num_per_task :]

    return of_task


def _reader(
    benchmark: Benchmark, tasks: Sequence[str], folder: Path, *, settings: Demonstrations, policy: QuestConfig
) -> OfTask:
    paths = {task: find_file(folder, task) for task in tasks}
    if policy.cameras:
        for path in paths.values():
            _require_same_rendering(benchmark, path)
    there = {task: count_demonstrations(path) for task, path in paths.items()}
    stored = sum(num_bytes for _, num_bytes in there.values()) > MAX_BYTES_IN_MEMORY

    def of_task(task: str) -> tuple[Sequence[Demonstration], Sequence[Demonstration]]:
        chosen, held_out = choose(there[task][0], settings, where=paths[task])
        read = read_demonstrations(
            paths[task],
            instruction=benchmark.instruction(task),
            sensors=policy.cameras + policy.sensors,
            chosen=chosen + held_out,
            stored=stored,
        )
        return read[: len(chosen)], read[len(chosen) :]

    return of_task


def _require_same_rendering(benchmark: Benchmark, path: Path) -> None:
    """Check that a policy will see pictures as those that it learns from.

    Raises:
        ConfigError: The file's pictures look otherwise.
    """
    for name, there in recorded_rendering(path).items():
        here, option = getattr(benchmark, name), name.replace("_", "-")
        require(there == here, f"{path} was recorded with {option} {there}, but benchmark.{option} is {here}")


def choose(num_there: int, settings: Demonstrations, *, where: Path) -> tuple[list[int], list[int]]:
    """Which demonstrations of a file to train on and which to hold out, counted from 0.

    Args:
        num_there: Demonstrations in the file.
        settings: How many of each, and how they are selected.
        where: The file, for the message.

    Raises:
        ConfigError: There are too few.
    """
    wanted = settings.num_per_task + settings.num_held_out
    if num_there < wanted:
        raise ConfigError(
            f"{where} holds {num_there} demonstrations, fewer than demos.num-per-task {settings.num_per_task} and "
            f"demos.num-held-out {settings.num_held_out} together"
        )
    chosen = list(range(settings.num_per_task))
    if settings.selection == "spread":
        chosen = np.linspace(0, num_there - 1, settings.num_per_task, dtype=int).tolist()
    rest = [index for index in range(num_there) if index not in chosen]
    return chosen, rest[: settings.num_held_out]
