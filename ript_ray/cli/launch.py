"""What `python -m experiments.NAME` does: read the command line, run the experiment, print the result."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from ript_ray.checks import require
from ript_ray.cli.entrypoint import begin_loading, print_line, register_plugins, run_command
from ript_ray.config.experiment import BENCHMARKS, POLICIES, Experiment
from ript_ray.runtime.cluster import Cluster
from ript_ray.tracking.logs import ViewMode, console_logging
from ript_ray.types import RIPT

if TYPE_CHECKING:
    from ript_ray.pipeline import Results

CONFIG = (tyro.conf.AvoidSubcommands, tyro.conf.EnumChoicesFromValues)


@dataclass(frozen=True)
class Launch:
    """One run of an experiment.

    Attributes:
        experiment: What is learned.
        cluster: Where it runs.
        runs: Folder of the runs of all experiments.
        label: A word at the end of the run's name, in its folder and in MLflow.
        view: Progress on the console: auto (a live table in a terminal, lines elsewhere), lines (one per update, and
            every 10 s in supervised stages), quiet (only warnings, errors and the results).
        plugin: Policies and benchmarks of your own, as MODULE:NAME; `--policy.kind` and `--benchmark.kind` may then
            name their kinds. The module is looked for in the current directory, too.
    """

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    cluster: Cluster = field(default_factory=Cluster)
    runs: Path = Path("runs")
    label: str = ""
    view: ViewMode = ViewMode.AUTO
    plugin: tuple[str, ...] = ()


def launch(experiment: Experiment, description: str) -> None:
    """Run an experiment from the command line; every field can be overridden there. Never returns.

    Args:
        experiment: The experiment as its file states it.
        description: What `--help` says above the options.
    """

    def parse() -> Launch:
        chosen = _with_kinds(experiment, sys.argv[1:])
        return tyro.cli(Launch, default=Launch(chosen), description=_describe(description), config=CONFIG)

    run_command(lambda: _run(parse()))


def launch_preset(presets: Mapping[str, Experiment], description: str) -> None:
    """Run one of several versions of an experiment: the first word on the command line says which. Never returns.

    Args:
        presets: The experiments by the names of their versions.
        description: What `--help` says above them.
    """

    def parse() -> Launch:
        chosen = {name: _with_kinds(preset, sys.argv[1:]) for name, preset in presets.items()}
        return tyro.extras.overridable_config_cli(
            {name: (f"preset {name}", Launch(preset)) for name, preset in chosen.items()},
            description=_describe(description),
            config=CONFIG,
        )

    run_command(lambda: _run(parse()))


def resume(run: Path, cluster: Cluster, mode: ViewMode, *, num_updates: int | None = None, strict: bool = False) -> int:
    """Resume or extend a run and print its results; returns the exit code. See `resume_experiment`."""
    console = Console()
    with console_logging(mode.log_level, console):
        begin_loading(run)
        from ript_ray.pipeline import resume_experiment
        from ript_ray.tracking.console import View

        results = resume_experiment(
            run,
            cluster,
            view_of=lambda experiment: View(mode, experiment.num_updates, console),
            num_updates=num_updates,
            strict=strict,
        )
    return report(results, console)


def report(results: "Results", console: Console) -> int:
    """Print what was found; returns the exit code."""
    from ript_ray.evaluation.comparison import Comparison
    from ript_ray.evaluation.tables import difference_line, results_table

    title = f"{results.experiment.name}, seed {results.experiment.seed}: success on held-out contexts"
    if results.before is not None and results.after is not None:
        console.print(results_table({"before RIPT": results.before, "after RIPT": results.after}, title))
        print_line(console, difference_line(Comparison.of(results.before, results.after).overall))
    elif results.after is not None:
        console.print(results_table({"success": results.after}, title))
    print_line(console, f"results, metrics, checkpoints and curve: {results.folder}")
    print_line(console, "compare runs: mlflow ui")
    if results.tracking_error:
        later = f"metrics.jsonl is complete; upload it later with: ript-ray sync-tracking {results.folder}"
        print_line(console, f"MLflow: {results.tracking_error}; {later}")
    exhausted = results.train_result.exhausted if results.train_result else None
    if exhausted is None:
        return 0
    print_line(console, f"training ended early: {exhausted}; the last weights are kept")
    return 0 if exhausted.is_success else exhausted.exit_code


def _run(launch: Launch) -> int:
    console = Console()
    with console_logging(launch.view.log_level, console):
        begin_loading()
        # Imported here: a mistake on the command line is answered before torch, Ray and a simulator are there.
        from ript_ray.pipeline import run_experiment
        from ript_ray.tracking.console import View

        with View(launch.view, launch.experiment.num_updates, console) as view:
            results = run_experiment(launch.experiment, launch.cluster, runs=launch.runs, view=view, label=launch.label)
    return report(results, console)


def _describe(description: str) -> str:
    headings_apart = re.sub(r"\n(?=[A-Z]\w+: )", "\n\n", description.strip())
    kinds = f"Policies: {', '.join(POLICIES.names())}. Benchmarks: {', '.join(BENCHMARKS.names())}."
    return f"{headings_apart}\n\n{kinds} --policy.kind or --benchmark.kind replaces a section by that kind's defaults."


def _with_kinds(experiment: Experiment, arguments: Sequence[str]) -> Experiment:
    """Change policy and benchmark to the kinds that the command line names; other options then change their fields."""
    register_plugins(_values_of("--plugin", arguments))
    changes: dict[str, Any] = {}
    for kind in _values_of("--benchmark.kind", arguments)[-1:]:
        if kind != experiment.benchmark.kind:
            benchmark = BENCHMARKS.find(kind)()
            max_steps = min(experiment.max_steps, benchmark.spec.max_steps)
            changes |= {"benchmark": benchmark, "tasks": benchmark.tasks, "max_steps": max_steps}
    for kind in _values_of("--policy.kind", arguments)[-1:]:
        if kind != experiment.policy.kind:
            policy = POLICIES.find(kind)
            changes |= {"policy": policy(), "sft": policy.sft_type(), "stages": (*policy.sft_type.stages, RIPT)}
    return replace(experiment, **changes)


def _values_of(option: str, arguments: Sequence[str]) -> list[str]:
    """What follows an option, up to the next one; `--option=value` counts, too."""
    values: list[str] = []
    is_open = False
    for argument in arguments:
        if argument.startswith(f"{option}="):
            values.append(argument.partition("=")[2])
        elif argument.startswith("--"):
            is_open = argument == option
        elif is_open:
            values.append(argument)
    require(not is_open or bool(values), f"{option} needs a value")
    return values
