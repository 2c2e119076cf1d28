"""The program that is one trial of a sweep: it begins the trial's run, or goes on with it."""

import logging
import os
import signal
import sys
import time
from pathlib import Path

from rich.console import Console

from ript_ray.cli.entrypoint import begin_loading, run_command
from ript_ray.cli.launch import report, report_ended, resume
from ript_ray.cli.sweep import read_plan
from ript_ray.rl.simulation_process import end_with_parent
from ript_ray.runs.run_dir import RunDir
from ript_ray.runs.sweep import SweepDir
from ript_ray.tracking.logs import ViewMode, console_logging
from ript_ray.tracking.store import Origin

RELEASE_TIMEOUT_S = 60.0
"""Longest time that an earlier process of the trial, whose sweep was killed, may take to save and end."""

logger = logging.getLogger(__name__)


def run_trial(folder: Path, name: str) -> int:
    """Run a trial, from its newest checkpoint if it has begun already; returns the exit code.

    Args:
        folder: The sweep's folder, absolute.
        name: The trial.
    """
    sweep = SweepDir(folder)
    os.chdir(sweep.directory)  # on a joined cluster it is that of `ray start`
    plan = read_plan(sweep)
    cluster = plan.options.cluster_of_trial
    (trial,) = (each for each in plan.trials if each.name == name)
    console = Console()
    with console_logging(console=console):
        run = trial.find_run(sweep.runs)
        if run is not None:
            _await_release(run)
            is_ended = run.results.exists()
            return report_ended(run.path, console) if is_ended else resume(run.path, cluster, ViewMode.LINES)
        begin_loading()
        from ript_ray.pipeline import run_experiment
        from ript_ray.tracking.console import View

        with View(ViewMode.LINES, trial.experiment.num_updates, console) as view:
            results = run_experiment(
                trial.experiment,
                cluster,
                runs=sweep.runs,
                view=view,
                label=trial.label,
                base=plan.base,
                origin=Origin.read(folder),
            )
        return report(results, console)


def _await_release(run: RunDir) -> None:
    deadline = time.monotonic() + RELEASE_TIMEOUT_S
    while run.is_running and time.monotonic() < deadline:  # after that, the lock says who holds it
        time.sleep(0.2)


if __name__ == "__main__":
    end_with_parent(int(sys.argv[3]), signal.SIGTERM)
    run_command(lambda: run_trial(Path(sys.argv[1]), sys.argv[2]))
