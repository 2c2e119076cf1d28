"""The commands that README.md, docs/ and clusters/ show, and what reads each as its program would."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from typing import Any

import tyro

from ript_ray.cli.launch import Launch, base_of, parse_options
from ript_ray.cli.main import parse
from ript_ray.cli.plan import Plan, PlanOptions
from ript_ray.cli.sweep import Sweep
from ript_ray.cli.sweep_plan import make_plan
from ript_ray.config.changes import require_effect
from tests.commands import ROOT

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "clusters").rglob("*.md")),
]
FENCED = re.compile(r"^```(sh|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`(python -m experiments\.[^`]+)`")
INDENTED = re.compile(r"^ {4}((?:\.venv/bin/|python -[mc]|ript-ray|make|ray|\.\.\. --) .*)$", re.MULTILINE)
PLACEHOLDERS = {"EXPERIMENT": "experiments.quickstart", "...": "ELIDED"}

FOREIGN = {
    "git": "version control",
    "cd": "the shell",
    ".": "the shell",
    "export": "the shell",
    "ssh": "needs a second machine",
    "ray": "its lines are executed in tests/clusters",
    "tensorboard": "is not installed with ript-ray",
    "mlflow": "a server that runs until it is stopped",
    "pytest": "these tests",
    "mkdocs": "make docs runs it",
    "pre-commit": "installs a hook into the checkout",
    "pip": "installs packages",
    "sbatch": "tests/clusters",
    "srun": "tests/clusters",
    "scancel": "needs a cluster",
    "squeue": "needs a cluster",
    "kubectl": "needs a cluster",
    "helm": "needs a cluster",
    "docker": "needs a container engine",
}
"""Programs that are not ours, and why their lines are neither executed nor parsed here."""


def documented() -> list[str]:
    """Return every command line that a document shows, once, in the order of the documents."""
    return list(dict.fromkeys(line for path in DOCUMENTS for line in commands_of(path.read_text())))


def commands_of(text: str) -> Iterator[str]:
    """Yield the command lines of a document: of fenced blocks, indented ones, and tables."""
    for language, block in FENCED.findall(text.replace("\\\n", " ")):
        lines = block.splitlines()
        if language == "console":  # with output
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        for line in lines:
            yield from re.split(r" && ", re.sub(r"(^| +)#.*", "", line).strip())
    yield from INLINE.findall(text)
    yield from INDENTED.findall(text.replace("\\\n", " "))


def words_of(line: str) -> tuple[str, list[str]]:
    """Return the program of a command line, without its folder, and its arguments; `<...>` is a word."""
    words = shlex.split(re.sub(r"<[^>]*>", "WORD", line), comments=True)
    if words[:2] == ["...", "--"]:
        words = words[2:]
    words = [PLACEHOLDERS.get(word, word) for word in words if word != "$@"]
    return words[0].removeprefix(".venv/bin/"), words[1:]


def check(program: str, arguments: list[str]) -> None:
    """Read a command line as the program would, with all its options; an unknown one raises SystemExit."""
    if program == "make":
        target = re.escape(arguments[0])
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), arguments
    elif program == "ript-ray":
        _check_plan(parse(arguments))
    elif program.startswith("python") and arguments[0] == "-m":
        _check_launcher(arguments[1], arguments[2:])
    elif program.startswith("python") and arguments[0] == "-c":
        _check_code(arguments[1])
    elif program.startswith("python") and arguments[0] == "experiments/sweep.py":
        if arguments[1].startswith("--"):
            tyro.cli(Sweep, args=arguments[1:])
        else:
            make_plan(arguments[1], arguments[2:], prog="")
    else:
        if "--" in arguments:  # ray job submit ... -- COMMAND
            check(*words_of(shlex.join(arguments[arguments.index("--") + 1 :])))
        assert program in FOREIGN, f"`{program}` is neither executed nor parsed: is it a command? see FOREIGN"


def _check_code(code: str) -> None:
    """Import what a line of Python imports; whoever documents it executes it in a test of its own."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(ast.unparse(node), {})


def _check_plan(command: Any) -> None:
    if isinstance(command, Plan):
        module = importlib.import_module(command.experiment)
        parse_options(PlanOptions, _experiments(module), command.options, prog="", description="")


def _check_launcher(name: str, arguments: list[str]) -> None:
    module = importlib.import_module(name)
    if hasattr(module, "Options"):
        tyro.cli(module.Options, args=arguments)
    elif arguments != ["differences"]:
        experiments = _experiments(module)
        chosen = parse_options(Launch, experiments, arguments, prog="", description="")
        require_effect(base_of(experiments, arguments), chosen.experiment)


def _experiments(module: Any) -> Any:
    return module.PRESETS if hasattr(module, "PRESETS") else module.EXPERIMENT
