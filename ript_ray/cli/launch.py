"""What `python -m experiments.NAME` does: read the command line, run the experiment, print the result."""

import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import tyro
from rich.console import Console

from ript_ray.checks import require
from ript_ray.cli.entrypoint import (
    WithClusterFile,
    at_cluster_file,
    begin_loading,
    print_line,
    register_plugins,
    run_command,
    value_of,
)
from ript_ray.config.changes import require_effect, with_kinds
from ript_ray.config.experiment import BENCHMARKS, POLICIES, Experiment, plugin_option
from ript_ray.runtime.cluster import Cluster
from ript_ray.tracking.logs import ViewMode, console_logging
from ript_ray.tracking.store import Origin, TrackerName, ui_command

if TYPE_CHECKING:
    from ript_ray.pipeline import Results

Options = TypeVar("Options")

CONFIG = (tyro.conf.AvoidSubcommands, tyro.conf.EnumChoicesFromValues)


@dataclass(frozen=True)
class Launch(WithClusterFile):
    """One run of an experiment.

    Attributes:
        experiment: What is learned.
        cluster: Where it runs.
        runs: Folder of the runs of all experiments.
        label: A word at the end of the run's name, in its folder and in MLflow.
        resume: Go on with the run that has this label and seed, if there is one, and begin it otherwise. For schedulers
            that repeat a command until it succeeds; where the run has finished, nothing is done.
        seeds: Run the experiment with each of these seeds, one after another, and print their mean, the worst and
            intervals. All are evaluated on the same contexts: those of evaluation.seed, or of the first seed.
        view: Progress on the console: auto (a live table in a terminal, lines elsewhere), lines (one per update, and
            every 10 s in supervised stages), quiet (only warnings, errors and the results).
        trackers: Where metrics go besides metrics.jsonl in the run's folder, none or more of: mlflow (the store that
            MLFLOW_TRACKING_URI names, else mlflow.db beside the folder of the runs), tensorboard (event files in
            the run's folder). Kept for `ript-ray resume`.
        plugin: Policies and benchmarks of your own, as MODULE:NAME; `--policy.kind` and `--benchmark.kind` may then
            name their kinds. The module is looked for in the current directory, too.
    """

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    cluster: Cluster = field(default_factory=Cluster)
    runs: Path = Path("runs")
    label: str = ""
    resume: bool = False
    seeds: tuple[int, ...] = ()
    view: ViewMode = ViewMode.AUTO
    trackers: tuple[TrackerName, ...] = ("mlflow",)
    plugin: tuple[str, ...] = ()


def launch(experiment: Experiment, description: str) -> None:
    """Run an experiment from the command line; every field can be overridden there. Never returns.

    Args:
        experiment: The experiment as its file states it.
        description: What `--help` says above the options.
    """
    run_command(lambda: _run(_parse(experiment, description), experiment, description))


def launch_preset(presets: Mapping[str, Experiment], description: str) -> None:
    """Run one of several versions of an experiment: the first word on the command line says which. Never returns.

    Args:
        presets: The experiments by the names of their versions.
        description: What `--help` says above them.
    """
    run_command(lambda: _run(_parse(presets, description), base_of(presets, sys.argv[1:]), description))


def _parse(experiments: Experiment | Mapping[str, Experiment], description: str) -> Launch:
    return parse_options(Launch, experiments, sys.argv[1:], prog=_program(), description=description)


def parse_options(
    options: Callable[[Experiment], Options],
    experiments: Experiment | Mapping[str, Experiment],
    arguments: Sequence[str],
    *,
    prog: str,
    description: str,
) -> Options:
    """Read the options of a command that is about an experiment.

    Args:
        options: Their class, a `WithClusterFile`; its first field is the experiment.
        experiments: The experiment as its file states it, or its versions by name.
        arguments: The command line.
        prog: What the user has typed before them.
        description: What `--help` says above the options.
    """
    text, options = _describe(description), at_cluster_file(options, arguments)
    if isinstance(experiments, Experiment):
        default = options(_with_kinds(experiments, arguments))
        return tyro.cli(type(default), args=arguments, prog=prog, default=default, description=text, config=CONFIG)
    # Kinds need not fit the presets that are not meant.
    chosen = {
        each: _with_kinds(preset, arguments) if each in arguments else preset for each, preset in experiments.items()
    }
    return tyro.extras.overridable_config_cli(
        {name: (f"preset {name}", options(preset)) for name, preset in chosen.items()},
        args=arguments,
        prog=prog,
        description=text,
        config=CONFIG,
    )


def base_of(experiments: Experiment | Mapping[str, Experiment], arguments: Sequence[str]) -> Experiment:
    """Return the experiment that a command line changes."""
    if isinstance(experiments, Experiment):
        return experiments
    return next(experiments[word] for word in arguments if word in experiments)


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
    from ript_ray.runs.lineage import demonstrations_of
    from ript_ray.runs.retention import size_bytes
    from ript_ray.runs.run_dir import SCRIPTED

    title = f"{results.experiment.name}, seed {results.experiment.seed}: success on held-out contexts"
    if results.before is not None and results.after is not None:
        console.print(results_table({"before RIPT": results.before, "after RIPT": results.after}, title))
        print_line(console, difference_line(Comparison.of(results.before, results.after).overall))
    elif results.after is not None:
        console.print(results_table({"success": results.after}, title))
    if demonstrations_of(results.folder) == SCRIPTED:
        print_line(console, "demonstrations: scripted, by an expert that sees the simulator's state")
    size = f"{size_bytes(results.folder) / 1e6:,.0f} MB"
    print_line(console, f"results, metrics, checkpoints and curve: {results.folder} ({size})")
    if results.tracking_error:
        upload = f"ript-ray sync-tracking {results.folder}{plugin_option(results.experiment)}"
        later = f"metrics.jsonl is complete; upload it later with: {upload}"
        print_line(console, f"tracking: {results.tracking_error}; {later}")
    elif "mlflow" in (origin := Origin.read(results.folder)).trackers:
        print_line(console, f"compare runs: {ui_command(origin.store(results.folder, results.experiment.name))}")
    exhausted = results.train_result.exhausted if results.train_result else None
    if exhausted is None:
        return 0
    print_line(console, f"training ended early: {exhausted}; the last weights are kept")
    return 0 if exhausted.is_success else exhausted.exit_code


def report_ended(run: Path, console: Console) -> int:
    """Print how a run with results has ended, in an earlier process; returns the exit code."""
    from ript_ray.runs.overview import RunState, overview

    has_failed = overview(run)[0].state is RunState.FAILED
    why = "has ended already, without success: its log says why" if has_failed else "has finished already"
    print_line(console, f"{run} {why}")
    return int(has_failed)


def _run(launch: Launch, base: Experiment, description: str) -> int:
    from ript_ray.cli.seeds import run_seeds, with_seeds

    require_effect(base, launch.experiment)
    console = Console()

    def run(experiment: Experiment) -> tuple[Path, int]:
        return _run_one(replace(launch, experiment=experiment), base, description, console)

    with console_logging(launch.view.log_level, console):
        begin_loading()
        if not launch.seeds:
            return run(launch.experiment)[1]
        require(
            launch.experiment.seed == base.seed, f"--seeds names all seeds: --seed {launch.experiment.seed} is too many"
        )
        return run_seeds(with_seeds(launch.experiment, launch.seeds), run, console)


def _run_one(launch: Launch, base: Experiment, description: str, console: Console) -> tuple[Path, int]:
    # Imported here: a mistake on the command line is answered before torch, Ray and a simulator are there.
    from ript_ray.pipeline import begun_run, resume_experiment, run_experiment
    from ript_ray.tracking.console import View

    begun = begun_run(launch.runs, launch.experiment, launch.label) if launch.resume else None
    if begun is not None and begun.results.exists():
        return begun.path, report_ended(begun.path, console)

    def view_of(experiment: Experiment) -> View:
        return View(launch.view, experiment.num_updates, console)

    if begun is not None:
        results = resume_experiment(begun.path, launch.cluster, view_of=view_of)
    else:
        with view_of(launch.experiment) as view:
            results = run_experiment(
                launch.experiment,
                launch.cluster,
                runs=launch.runs,
                view=view,
                label=launch.label,
                base=base,
                origin=Origin.here(launch.trackers, "\n\n".join(_blocks(description))),
            )
    return results.folder, report(results, console)


def _program() -> str:
    """What the user has typed: `python -m MODULE`, or the file."""
    module = sys.modules["__main__"].__spec__
    return f"python -m {module.name}" if module else sys.argv[0]


def _describe(description: str) -> str:
    """Fit a docstring to the terminal; `--help` keeps a line break before what is indented, and joins other lines."""
    width = min(120, shutil.get_terminal_size().columns)
    paragraphs: list[str] = []
    for block in _blocks(description):
        if block.startswith("    "):  # commands, below the paragraph that introduces them
            paragraphs[-1] += f"\n{block}"
        else:
            paragraphs.append(_filled(block, width))
    kinds = f"Policies: {', '.join(POLICIES.names())}. Benchmarks: {', '.join(BENCHMARKS.names())}."
    chosen = f"{kinds} --policy.kind or --benchmark.kind replaces a section by that kind's defaults."
    return "\n\n".join([*paragraphs, _filled(chosen, width)])


def _blocks(description: str) -> list[str]:
    """The paragraphs of a launcher's docstring; each heading, such as "Source: ", begins one."""
    return re.split(r"\n\n|\n(?=[A-Z]\w+: )", description.strip())


def _filled(text: str, width: int) -> str:
    words = " ".join(text.split())
    return textwrap.fill(words, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _with_kinds(experiment: Experiment, arguments: Sequence[str]) -> Experiment:
    """Change policy and benchmark to the kinds that the command line names; other options then change their fields."""
    register_plugins(_values_of("--plugin", arguments))
    policy = value_of("--policy.kind", arguments) or experiment.policy.kind
    benchmark = value_of("--benchmark.kind", arguments) or experiment.benchmark.kind
    return with_kinds(experiment, policy=policy, benchmark=benchmark)


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
