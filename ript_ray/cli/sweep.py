"""Many settings and seeds of one experiment, side by side on a cluster: what `python experiments/sweep.py` does."""

import contextlib
import json
import logging
import os
import shlex
import shutil
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ript_ray.checks import require
from ript_ray.cli.entrypoint import begin_loading, print_line, run_command
from ript_ray.cli.plan import as_options
from ript_ray.cli.runs import FILE_WIDTH
from ript_ray.cli.sweep_plan import SweepPlan, make_plan
from ript_ray.config.serialization import SCHEMA
from ript_ray.errors import CheckpointError
from ript_ray.evaluation.tables import estimate_cell
from ript_ray.runs.run_dir import locked
from ript_ray.runs.sweep import SUFFIX, SettingView, SweepDir, Trial, TrialState, TrialView, by_setting
from ript_ray.runtime.cluster import Cluster
from ript_ray.storage.atomic import atomic_write, make_directory, os_errors_as_storage_error
from ript_ray.storage.reading import read_object
from ript_ray.tracking.logs import console_logging
from ript_ray.tracking.store import Origin, ui_command

ENDED = (TrialState.FINISHED, TrialState.STOPPED)
PROG = "python experiments/sweep.py"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sweep:
    """Run an experiment with several settings and seeds, side by side on this machine or a cluster, and compare them.

    python experiments/sweep.py experiments.quickstart --over ppo.learning-rate=1e-4,3e-4 --seeds 0-4

    Each trial is a run as any other, in runs/<experiment>; the table and the plot are in runs/<experiment>-sweep. A
    sweep that was stopped goes on with the same command: what has finished is not repeated, and what has not goes on
    from its newest checkpoint. `EXPERIMENT --help` lists all options.

    Attributes:
        experiment: A launcher (experiments.quickstart, or a file); after it, all that the launcher takes, --over and
            --seeds.
        options: What follows it.
        resume: Go on with the sweep in this folder, with the options that it was begun with.
        table: Print how the sweep in this folder stands, and draw its plot; it may be running.
    """

    experiment: Annotated[str | None, tyro.conf.Positional] = None
    options: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="option", metavar="OPTION")] = ()
    resume: Path | None = None
    table: Path | None = None

    def run(self) -> int:
        """Run, resume or show; returns the exit code."""
        asked = [each for each in (self.experiment, self.resume, self.table) if each is not None]
        require(len(asked) == 1, "name one of: an experiment, --resume FOLDER, --table FOLDER")
        console = Console()
        if self.table is not None:
            sweep = SweepDir(self.table)
            return _show(sweep, read_plan(sweep), console)
        if self.resume is not None:
            sweep = SweepDir(self.resume)
            return _run(sweep, read_plan(sweep), console)
        assert self.experiment is not None
        plan = make_plan(self.experiment, self.options, prog=f"{PROG} {self.experiment}")
        sweep = SweepDir(plan.options.runs / f"{plan.options.experiment.name}{SUFFIX}" / plan.options.label)
        _begin(sweep, plan, [self.experiment, *self.options])
        return _run(sweep, plan, console)


def main() -> None:
    """Entry point of `python experiments/sweep.py`."""

    def execute() -> int:
        arguments = sys.argv[1:]
        if arguments and not arguments[0].startswith("-"):
            arguments = [arguments[0], *as_options(arguments[1:])]
        command = tyro.cli(Sweep, prog=PROG, args=arguments)
        with console_logging():
            return command.run()

    run_command(execute)


def read_plan(sweep: SweepDir) -> SweepPlan:
    """Read the plan of a sweep that has begun; its folder may have moved.

    Raises:
        CheckpointError: The folder is not that of a sweep.
        RiptError: Its experiment or one of its options is not known any more.
    """
    try:
        experiment, *options = map(str, read_object(sweep.config)["command"])
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{sweep.path} is not the folder of a sweep: {error!r}") from error
    where = [f"--label={sweep.path.absolute().name}", f"--runs={sweep.runs}"]
    with contextlib.chdir(sweep.directory):
        return make_plan(experiment, [*options, *where], prog=f"{PROG} {experiment}")


def _begin(sweep: SweepDir, plan: SweepPlan, command: Sequence[str]) -> None:
    """Write what the sweep is, unless it has begun already.

    Raises:
        ConfigError: Another sweep has this folder.
    """
    _require_fit(plan)
    if sweep.config.exists():
        require(
            read_plan(sweep).trials == plan.trials,
            f"{sweep.path} has a sweep of other trials: {shlex.join(read_object(sweep.config)['command'])}; give this "
            "one a --label of its own",
        )
    else:
        origin = Origin.here(plan.options.trackers, plan.description.strip())
        with os_errors_as_storage_error(sweep.path):
            make_directory(sweep.logs)
        replace(origin, sweep=uuid.uuid4().hex).write(sweep.path)
    content = {"schema": SCHEMA, "command": list(command), "directory": str(Path.cwd())}
    atomic_write(sweep.config, json.dumps(content, indent=2) + "\n")


def _require_fit(plan: SweepPlan) -> None:
    from ript_ray.runtime.factory import require_fit

    for trial in plan.trials:
        require_fit(plan.options.cluster_of_trial, trial.experiment.num_learners, trial.experiment.policy)


def _run(sweep: SweepDir, plan: SweepPlan, console: Console) -> int:
    """Run the trials that have not ended, and show all; returns the exit code."""
    from ript_ray.runs.sweep_tracked import tracked_sweep

    options = plan.options
    params = {"over": " ".join(options.over), "seeds": options.seeds, "trials": str(len(plan.trials))}
    with locked(sweep.path / "sweep.lock"):
        views = sweep.view(plan.trials)
        waiting = [view.trial for view in views if view.state not in ENDED]
        if waiting:
            with tracked_sweep(sweep, options.experiment.name, params), _shown(sweep, plan, console):
                _run_trials(sweep, plan, waiting, [view.trial for view in views if view.state in ENDED])
            return 0 if all(view.state in ENDED for view in sweep.view(plan.trials)) else 1
    return _show(sweep, plan, console)


@contextlib.contextmanager
def _shown(sweep: SweepDir, plan: SweepPlan, console: Console) -> Iterator[None]:
    """Show the sweep however the block ends, and how it goes on if it is not complete."""
    try:
        yield
    finally:
        _show(sweep, plan, console)
        if any(view.state not in ENDED for view in sweep.view(plan.trials)):
            print_line(console, f"the sweep goes on with: {PROG} --resume {sweep.path}")


def _run_trials(sweep: SweepDir, plan: SweepPlan, waiting: Sequence[Trial], ended: Sequence[Trial]) -> None:
    begin_loading()
    from ript_ray.runtime.trials import EarlyStopping, TrialEnd, TrialProcess, run_trials

    options, stopping = plan.options, None
    if options.stop_early:
        past = [trial.read_progress(sweep.runs) for trial in ended]
        stopping = EarlyStopping(options.first_rung, options.keep_one_in, options.experiment.num_updates, past)
    folder = sweep.path.absolute()
    processes = [
        TrialProcess(
            trial.name,
            (sys.executable, "-m", "ript_ray.cli.sweep_trial", str(folder), trial.name),
            folder / "logs" / f"{trial.name}.log",
            partial(trial.read_progress, sweep.runs),
            partial(trial.is_running, sweep.runs),
        )
        for trial in waiting
    ]
    logger.info("%s: trials to run: %d of %d", sweep.path, len(waiting), len(plan.trials))
    with _empty_folder(sweep.path / "tune") as scratch:
        run_trials(
            processes,
            options.cluster_of_trial,
            scratch=scratch,
            on_end=lambda name, end, why: sweep.record_end(name, end, why) if end is not TrialEnd.FINISHED else None,
            place=Cluster(address=options.cluster.address, node_timeout_s=options.cluster.node_timeout_s),
            num_learners=options.experiment.num_learners,
            stopping=stopping,
        )


@contextlib.contextmanager
def _empty_folder(path: Path) -> Iterator[Path]:
    """Have an empty folder until the block ends; what a killed process left there is removed."""
    shutil.rmtree(path, ignore_errors=True)
    make_directory(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _show(sweep: SweepDir, plan: SweepPlan, console: Console) -> int:
    """Print how the sweep stands, and draw its plot; returns the exit code: 1 if a trial has failed."""
    from ript_ray.runs.sweep_tracked import store_of
    from ript_ray.tracking.plot import plot_settings

    views = sweep.view(plan.trials)
    settings, name = by_setting(views), plan.options.experiment.name
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = FILE_WIDTH
    console.print(_table(settings, f"{name}, sweep {sweep.path.name}: success on held-out contexts"))
    for view in views:
        if view.state is TrialState.FAILED:
            print_line(console, f"failed: {view.trial.name}: {view.detail}; {_log_of(sweep, view)}")
    curves = {setting.setting or name: setting.curves for setting in settings}
    with os_errors_as_storage_error(sweep.plot):
        plot_settings(sweep.plot, curves, title=f"{name}, sweep {sweep.path.name}: mean over seeds, 95 % interval")
    print_line(console, f"curves: {sweep.plot}")
    if store := store_of(sweep, name):
        print_line(console, f"compare trials, below sweep {sweep.path.name}: {ui_command(store)}")
    return int(any(view.state is TrialState.FAILED for view in views))


def _log_of(sweep: SweepDir, view: TrialView) -> str:
    return str(sweep.logs / f"{view.trial.name}.log")


def _table(settings: Sequence[SettingView], title: str) -> Table:
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True)
    table.add_column("setting", overflow="fold", min_width=16)  # all fits 80 columns
    for column in ("before, %", "after, %", "gain"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("trials", min_width=11)
    table.add_column("min", justify="right", no_wrap=True)
    for each in settings:
        counts = ", ".join(f"{count} {state}" for state in TrialState if (count := each.count(state)))
        table.add_row(escape(each.setting or "as it is"), *_success_cells(each), counts, f"{each.wall_s / 60:.1f}")
    return table


def _success_cells(setting: SettingView) -> list[str]:
    """Success before and after, with intervals over seeds if two have finished, and the gain."""
    if setting.summary:
        overall = setting.summary.overall
        return [estimate_cell(overall.before), estimate_cell(overall.after), f"{100 * overall.gain.mean:+.1f}"]
    if not setting.finished:
        return ["", "", ""]
    run = setting.finished[0]
    rates = ((run.before, ".1f"), (run.after, ".1f"), (run.gain, "+.1f"))
    return ["" if rate is None else format(100 * rate, form) for rate, form in rates]
