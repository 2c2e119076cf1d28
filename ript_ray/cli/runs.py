"""`ript-ray runs`: the runs of a folder as a table."""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ript_ray.cli.entrypoint import print_line

if TYPE_CHECKING:
    from ript_ray.runs.overview import RunOverview

FILE_WIDTH = 200
"""Columns of the table where it does not go to a terminal."""

SCRIPTED_MARK = " *"
"""Follows the names of runs that learned from scripted demonstrations."""


@dataclass(frozen=True)
class Runs:
    """List runs: how they stand, what was changed of the experiment's file, success before and after, what they cost.

    Success is in % of the held-out contexts, and the gain in points; steps are environment steps of post-training.

    Attributes:
        folder: Folder of the runs of all experiments, or of one experiment, or a run.
    """

    folder: Annotated[Path, tyro.conf.Positional] = Path("runs")

    def run(self) -> int:
        """Print one table per experiment, and how to go on with what has not finished."""
        from ript_ray.runs.killed import closing_killed_runs
        from ript_ray.runs.overview import RunState, overview

        console = Console()
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = FILE_WIDTH
        runs = overview(self.folder)
        with closing_killed_runs(self.folder):  # read before: closing a run takes its lock
            for experiment, group in itertools.groupby(runs, key=lambda run: run.folder.absolute().parent):
                console.print(_table(experiment.name, list(group), console.width))
            if not runs:
                print_line(console, f"there are no runs in {self.folder}")
            if any(run.is_scripted for run in runs):
                print_line(console, f"{SCRIPTED_MARK.strip()} learned from scripted demonstrations")
            if any(run.state in (RunState.INTERRUPTED, RunState.FAILED) for run in runs):
                print_line(console, "what has not finished goes on with: ript-ray resume RUN")
        return 0


def _table(experiment: str, runs: "list[RunOverview]", width: int) -> Table:
    padding = (0, 1) if width >= 100 else 0  # a terminal of 80 columns is wide enough
    table = Table(title=escape(experiment), title_justify="left", box=box.SIMPLE_HEAD, padding=padding, pad_edge=False)
    table.add_column("run", no_wrap=True)
    table.add_column("state", min_width=len("interrupted"))
    table.add_column("changed", overflow="fold")
    for name in ("before", "after", "gain", "rollouts", "steps", "min"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        state = f"{run.state}: {run.detail}" if run.detail else str(run.state)
        table.add_row(
            *(escape(text) for text in (run.folder.name + SCRIPTED_MARK * run.is_scripted, state, run.changed)),
            _percent(run.before, ".1f"),
            _percent(run.after, ".1f"),
            _percent(run.gain, "+.1f"),
            f"{run.num_rollouts:,}" if run.num_rollouts else "",
            f"{run.env_steps / 1000:,.0f}k" if run.env_steps else "",
            f"{run.wall_s / 60:.1f}" if run.wall_s else "",
        )
    return table


def _percent(rate: float | None, form: str) -> str:
    return "" if rate is None else format(100 * rate, form)
