"""`ript-ray doctor`: checks of the installation and the machine, with suggested fixes.

Imports no package at module level that could be the one that is missing.
"""

import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ript_ray import __version__
from ript_ray.cli.doctor.cluster import cluster
from ript_ray.cli.doctor.finding import INSTALL, Finding
from ript_ray.cli.doctor.graphics import gpus, rendering
from ript_ray.cli.doctor.libero import libero
from ript_ray.cli.doctor.machine import machine, runs_folder
from ript_ray.cli.doctor.packages import extras, known_problems, packages
from ript_ray.cli.doctor.tracking import mlflow

ALL_GOOD = "everything that ript-ray itself needs is here"


@dataclass(frozen=True)
class Doctor:
    """Check the installation and the machine, and suggest fixes; exit with 1 where a run would fail.

    Attributes:
        runs: Folder of the runs, which is checked for space, file locks and its clock.
        json: Print the findings as JSON.
    """

    runs: Path = Path("runs")
    json: bool = False

    def run(self) -> int:
        """Print all findings; return 1 if one is an error, else 0."""
        findings = list(self.findings())
        errors = [finding.thing for finding in findings if finding.mark == "error"]
        if self.json:
            _print_json(findings)
        else:
            _print(findings)
            print(f"a run would fail: {', '.join(errors)}" if errors else ALL_GOOD)
        return 1 if errors else 0

    def findings(self) -> Iterator[Finding]:
        """Make all checks; one that cannot be made says why, and the others are made all the same."""
        others = (machine, gpus, rendering, cluster, mlflow, packages, extras, known_problems, libero)
        for check in (partial(runs_folder, self.runs), *others):
            name = getattr(check, "__name__", "folder of the runs").replace("_", " ")
            try:
                yield from check()
            except ImportError as error:
                yield Finding(name, f"not checked: {error}", good=False, fix=INSTALL)
            except Exception as error:  # boundary: what ails this machine may be just this
                yield Finding(name, f"not checked: {type(error).__name__}: {error}", good=False, fix="see the message")


def _print_json(findings: Iterable[Finding]) -> None:
    rows = [
        {"mark": each.mark, "thing": each.thing, "found": each.found, "fix": "" if each.good else each.fix}
        for each in findings
    ]
    print(json.dumps({"ript_ray": __version__, "findings": rows}, indent=2))


def _print(findings: Iterable[Finding]) -> None:
    """Print a table on a terminal, and lines elsewhere or where rich is what is missing."""
    rows = [(each.mark, each.thing, each.found, "" if each.good else each.fix) for each in findings]
    if not sys.stdout.isatty() or importlib.util.find_spec("rich") is None:
        print("\n".join("  ".join(row).rstrip() for row in rows))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    colors = {"ok": "green", "error": "red", "warning": "yellow"}
    table = Table(title="ript-ray doctor", title_justify="left")
    for column in ("", "thing", "found", "to fix it"):
        table.add_column(column, overflow="fold")
    for mark, *cells in rows:
        table.add_row(f"[{colors[mark]}]{mark}[/]", *map(escape, cells))
    Console().print(table)
