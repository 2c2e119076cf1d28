"""What `python experiments/<name>.py` does: read the command line, run the experiment, print the result."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from ript_ray.cli.entrypoint import run_command
from ript_ray.config.experiment import Experiment
from ript_ray.evaluation.comparison import Comparison
from ript_ray.evaluation.tables import difference_line, results_table
from ript_ray.pipeline import Results, resume_experiment, run_experiment
from ript_ray.runtime.cluster import Cluster
from ript_ray.tracking.console import View, ViewMode
from ript_ray.tracking.logs import console_logging


@dataclass(frozen=True)
class Launch:
    """One run of an experiment.

    Attributes:
        experiment: What is learned.
        cluster: Where it runs.
        runs: Folder that collects the runs of all experiments.
        view: Progress on the console: auto (a live table in a terminal, lines elsewhere), lines (one per update, and
            every 10 s in supervised stages), quiet (only warnings, errors and the results).
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


def launch_preset(presets: Mapping[str, Experiment], description: str) -> None:
    """The same for an experiment of several versions: the first word on the command line says which. Never returns.

    Args:
        presets: The experiments by the names of their versions.
        description: What `--help` says above them.
    """

    def parse() -> Launch:
        return tyro.extras.overridable_config_cli(
            {name: (f"what `{name}` says, but for the options", Launch(preset)) for name, preset in presets.items()},
            description=description,
            config=(tyro.conf.AvoidSubcommands, tyro.conf.EnumChoicesFromValues),
        )

    run_command(lambda: _run(parse()))


def _run(launch: Launch) -> int:
    console = Console()
    with (
        console_logging(launch.view.log_level, console),
        View(launch.view, launch.experiment.num_updates, console) as view,
    ):
        results = run_experiment(launch.experiment, launch.cluster, runs=launch.runs, view=view)
    return report(results, launch.experiment, console)


def resume(run: Path, cluster: Cluster, mode: ViewMode) -> int:
    """Go on with an interrupted run and print its results; returns the exit code."""
    console = Console()
    with console_logging(mode.log_level, console):
        results, experiment = resume_experiment(
            run, cluster, view_of=lambda experiment: View(mode, experiment.num_updates, console)
        )
    return report(results, experiment, console)


def report(results: Results, experiment: Experiment, console: Console) -> int:
    """Print what was found; returns the exit code."""
    title = f"{experiment.name}, seed {experiment.seed}: success on held-out contexts"
    if results.before is not None and results.after is not None:
        console.print(results_table({"before RIPT": results.before, "after RIPT": results.after}, title))
        difference = Comparison.of(results.before, results.after).overall
        console.print(difference_line(difference), highlight=False, markup=False, soft_wrap=True)
    elif results.after is not None:
        console.print(results_table({"success": results.after}, title))
    console.print(
        f"results, metrics, checkpoints and curve: {results.folder}", highlight=False, markup=False, soft_wrap=True
    )
    console.print("compare runs: mlflow ui", highlight=False, markup=False, soft_wrap=True)
    if results.tracking_error:
        later = f"metrics.jsonl is complete; send it later with: ript-ray sync-tracking {results.folder}"
        console.print(f"MLflow: {results.tracking_error}; {later}", highlight=False, markup=False, soft_wrap=True)
    exhausted = results.train_result.exhausted if results.train_result else None
    if exhausted is None:
        return 0
    console.print(
        f"training ended early: {exhausted}; the last weights are kept", highlight=False, markup=False, soft_wrap=True
    )
    return 0 if exhausted.is_success else exhausted.exit_code
