"""What `python experiments/<name>.py` does: read the command line, run the experiment, print the result."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import tyro
from rich.console import Console

from ript_ray.config import Experiment
from ript_ray.errors import RiptError
from ript_ray.machine import num_cpus, num_gpus
from ript_ray.pipeline import Results, run_experiment
from ript_ray.runtime.cluster import Cluster
from ript_ray.view import View, ViewMode, results_table

Command = TypeVar("Command")


@dataclass(frozen=True)
class Launch:
    """One run of an experiment.

    Attributes:
        experiment: What is learned.
        cluster: Where it runs.
        runs: Folder that collects the runs of all experiments.
        view: What is shown: auto (live in a terminal, quiet elsewhere), lines (one per update), quiet.
    """

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    cluster: Cluster = field(default_factory=Cluster)
    runs: Path = Path("runs")
    view: ViewMode = ViewMode.AUTO


def launch(experiment: Experiment, description: str) -> None:
    """Run an experiment from the command line; every field can be overridden there. Never returns.

    Args:
        experiment: The experiment as its file states it.
        description: What `--help` says above the options.
    """

    def parse() -> Launch:
        return tyro.cli(
            Launch,
            default=Launch(experiment),
            description=description,
            config=(tyro.conf.AvoidSubcommands, tyro.conf.EnumChoicesFromValues),
        )

    run_command(lambda: _run(parse()))


def run_command(command: Callable[[], int]) -> None:
    """Run a command and exit: its code, or a message without traceback and the error's code."""
    try:
        code = command()
    except RiptError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def _run(launch: Launch) -> int:
    check_cluster(launch.cluster)
    console = Console()
    with View(launch.view, launch.experiment.num_updates, console) as view:
        results = run_experiment(launch.experiment, launch.cluster, runs=launch.runs, view=view)
    return report(results, launch.experiment, console)


def check_cluster(cluster: Cluster) -> None:
    """Refuse, before any work is done, more actors than this machine holds.

    Raises:
        ConfigError: They do not fit.
    """
    if cluster.is_here:
        cluster.count_actors(num_cpus(), num_gpus())


def report(results: Results, experiment: Experiment, console: Console) -> int:
    """Print what was found; returns the exit code."""
    title = f"{experiment.name}, seed {experiment.seed}: success on held-out contexts"
    console.print(results_table({"before RIPT": results.before, "after RIPT": results.after}, title))
    console.print(f"results, metrics, checkpoints and curve: {results.folder}", highlight=False, soft_wrap=True)
    console.print("compare runs: mlflow ui", highlight=False, soft_wrap=True)
    if results.tracking_problem:
        console.print(f"MLflow: {results.tracking_problem}; metrics.jsonl is complete", highlight=False, soft_wrap=True)
    exhausted = results.outcome.exhausted
    if exhausted is None:
        return 0
    console.print(f"training ended early: {exhausted}; the last weights are kept", highlight=False, soft_wrap=True)
    return 0 if exhausted.is_success else exhausted.exit_code
