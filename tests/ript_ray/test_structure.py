"""The structure: layers, sizes, and that everything the documents name exists."""

import ast
import importlib
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ript_ray.config.experiment import Experiment

ROOT = Path(__file__).parents[2]
SOURCES = [path for folder in ("ript_ray", "envs", "experiments") for path in sorted((ROOT / folder).rglob("*.py"))]
NO_EXPERIMENTS = ("__init__", "sweep")
EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiments").glob("*.py") if path.stem not in NO_EXPERIMENTS)
MAX_ENTRIES = 20


def test_the_package_shows_its_architecture_at_a_glance() -> None:
    found = {path.name for path in (ROOT / "ript_ray").iterdir()}
    entries = found - {"__pycache__", "__init__.py", "__main__.py", "py.typed"}  # as every package has
    assert len(entries) <= MAX_ENTRIES, sorted(entries)
    readme = (ROOT / "README.md").read_text()
    missing = {name for name in entries if name.removesuffix(".py") not in readme}
    assert not missing, f"the README's picture of the folders does not name {missing}"


def test_the_layer_contracts_hold() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def long_functions(tree: ast.Module) -> list[str]:
    """The functions of more than 60 lines."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 60]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small_and_have_docstrings(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert text.count("\n") <= 400
    assert ast.get_docstring(tree), "no module docstring"
    assert not long_functions(tree)


def test_files_and_functions_of_tests_stay_small() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 400, path
        assert not long_functions(ast.parse(text)), path


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_importable_and_states_its_question(name: str) -> None:
    module = importlib.import_module(f"experiments.{name}")
    experiments = module.PRESETS.values() if hasattr(module, "PRESETS") else [module.EXPERIMENT]
    assert all(isinstance(experiment, Experiment) for experiment in experiments)
    assert module.__doc__ is not None
    for heading in ("Question:", "Source:", "Expected:", "Hardware:", "Time:"):
        assert heading in module.__doc__


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()


FAKE_PYTEST = """#!/bin/sh
echo "$@" >> {calls}
case "$*" in *"{failing}"*) exit 1 ;; esac
"""


@pytest.mark.parametrize(
    ("failing", "succeeds"), [("-m not alone and not slow", False), ("-m alone and not slow", False), ("none", True)]
)
def test_make_test_runs_both_halves_and_fails_if_either_fails(failing: str, succeeds: bool, tmp_path: Path) -> None:
    calls, pytest_command = tmp_path / "calls", tmp_path / "pytest"
    pytest_command.write_text(FAKE_PYTEST.format(calls=calls, failing=failing))
    pytest_command.chmod(0o755)
    command = ["make", "-f", str(ROOT / "Makefile"), "--assume-old=check", "test", f"BIN={tmp_path}"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode == 0) == succeeds, result.stdout + result.stderr
    assert calls.read_text().splitlines() == [
        "-q -n 3 --dist loadfile --no-loadscope-reorder -m not alone and not slow",
        "-q -m alone and not slow",
    ]


def test_constraints_pin_exact_versions_and_name_no_index() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert "torch==2.13.0" in lines
    assert all(re.fullmatch(r"[\w.\-]+==[\w.+!]+", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert "torchvision" not in pinned
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    for requirement in (*project["dependencies"], *itertools.chain(*extras)):
        name = Requirement(requirement).name
        assert name == project["name"] or name.lower() in pinned


def test_the_installed_command_answers() -> None:
    command = [str(Path(sys.executable).parent / "ript-ray"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 0
    for name in ("evaluate", "doctor"):
        assert name in shown.stdout
