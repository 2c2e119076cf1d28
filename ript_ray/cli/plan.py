"""`ript-ray plan`: what a run will hold, send and take on a cluster, as tables; it refuses what does not fit."""

import importlib
import json
import runpy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from ript_ray.checks import require
from ript_ray.cli.entrypoint import WithClusterFile, begin_loading, print_line
from ript_ray.cli.launch import base_of, parse_options
from ript_ray.config.changes import require_effect
from ript_ray.config.experiment import Experiment
from ript_ray.config.serialization import read_experiment
from ript_ray.errors import ConfigError
from ript_ray.planning.nodes import Nodes
from ript_ray.runtime.cluster import Cluster

if TYPE_CHECKING:
    from ript_ray.planning.plan import Plan as PlanFound

CONFIG_FILE = "config.json"
"""The experiment in a run's folder."""


@dataclass(frozen=True)
class Plan:
    """Say what a run of an experiment will hold, send and take on a cluster, and refuse what does not fit.

    Nothing is started. `ript-ray plan EXPERIMENT --help` lists the experiment's options, those of the cluster and of
    its machines, and `--measure`.

    Attributes:
        experiment: A launcher (experiments.quickstart, or a file), a run's folder, or an experiment's JSON file; after
            it, all that the launcher takes: a preset, --policy.X, --cluster.X.
        options: What follows it.
    """

    experiment: Annotated[str, tyro.conf.Positional]
    options: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="option", metavar="OPTION")] = ()

    def run(self) -> int:
        """Print the plan."""
        experiments, description = find_experiments(self.experiment)
        options = parse_options(
            PlanOptions,
            experiments,
            self.options,
            prog=f"ript-ray plan {self.experiment}",
            description=description,
        )
        require_effect(base_of(experiments, self.options), options.experiment)
        return options.run()


@dataclass(frozen=True)
class PlanOptions(WithClusterFile):
    """What is planned.

    Attributes:
        experiment: What is learned.
        cluster: Where it runs.
        nodes: The machines.
        measure: Build environments and policy on this machine, take a few steps, and estimate the time of an update
            from them; otherwise environments and times are left out. A policy that this machine's memory is too small
            for is not measured.
        acceptance: Share of groups that are mixed, above 0, at most 1: the others are rolled out for nothing.
        out: Write all figures to this JSON file, which must not exist.
        plugin: Policies and benchmarks of your own, as MODULE:NAME.
    """

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    cluster: Cluster = field(default_factory=Cluster)
    nodes: Annotated[Nodes, tyro.conf.arg(name="")] = field(default_factory=Nodes)
    measure: bool = False
    acceptance: float = 0.5
    out: Path | None = None
    plugin: tuple[str, ...] = ()

    def run(self) -> int:
        """Print the plan, then refuse it if it does not fit."""
        begin_loading()
        from ript_ray.planning.fit import require_fit
        from ript_ray.planning.plan import make_plan
        from ript_ray.storage.atomic import atomic_write, require_absent

        if self.out:
            require_absent(self.out)
        plan = make_plan(
            self.experiment, self.cluster, self.nodes, acceptance=self.acceptance, is_measured=self.measure
        )
        _print(plan, self)
        if self.out:
            atomic_write(self.out, json.dumps(plan.to_json(), indent=2) + "\n")
        require_fit(plan.processes, self.nodes, plan.work)
        print_line(Console(), "it fits" if _is_known(plan, self.nodes) else "what is known of it fits")
        return 0


def join_plan_options(arguments: Sequence[str]) -> list[str]:
    """Return a command line with what follows `plan EXPERIMENT` as the option of `Plan`: the experiment reads it."""
    is_plan = arguments[:1] == ["plan"] and len(arguments) > 1 and not arguments[1].startswith("-")
    return [*arguments[:2], *as_options(arguments[2:])] if is_plan else [*arguments]


def as_options(arguments: Sequence[str]) -> list[str]:
    """Return arguments as values of an `--option` that takes any text."""
    return [f"--option={argument}" for argument in arguments]


def find_experiments(reference: str) -> tuple[Experiment | Mapping[str, Experiment], str]:
    """Return the experiment that a command line names, or its versions by name, and how it is described.

    Raises:
        RiptError: What it names is no experiment.
    """
    path = Path(reference)
    if path.is_dir() or path.suffix == ".json":
        experiment = read_experiment(path / CONFIG_FILE if path.is_dir() else path)
        return experiment, f"The experiment {experiment.name} as {path} has it."
    names: dict[str, Any] = runpy.run_path(reference) if path.suffix == ".py" else _names_in(reference)
    found = names.get("PRESETS", names.get("EXPERIMENT"))
    require(
        isinstance(found, Experiment | Mapping),
        f"{reference} is no launcher: it has neither EXPERIMENT nor PRESETS, as those in experiments/ have",
    )
    assert isinstance(found, Experiment | Mapping)
    return found, names.get("__doc__") or ""


def _names_in(module: str) -> dict[str, Any]:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return vars(importlib.import_module(module))
    except ImportError as error:
        raise ConfigError(f"{module} is no run's folder, and as a launcher it cannot be imported: {error}") from error


def _print(plan: "PlanFound", options: PlanOptions) -> None:
    console = Console()
    console.print(_holdings(plan))
    for line in (*_sizes(plan), *_memory(plan, options.nodes), *_times(plan, options.acceptance)):
        print_line(console, line)


def _holdings(plan: "PlanFound") -> Table:
    title = f"{plan.work.experiment.name}: what each process holds"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("process")
    table.add_column("holds")
    for name in ("GPU", "main memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for process in plan.processes:
        name = process.name if process.count == 1 else f"{process.count} x {process.name}"
        for holding in process.gpu:
            table.add_row(name, holding.what, _size(holding.num_bytes), "")
            name = ""
        for holding in process.main:
            table.add_row(name, holding.what, "", _size(holding.num_bytes))
            name = ""
        on_gpu = _size(process.gpu_bytes) if process.gpu else ""
        table.add_row("", "in all", on_gpu, _size(process.main_bytes), style="bold", end_section=True)
    return table


def _sizes(plan: "PlanFound") -> list[str]:
    work, footprint = plan.work, plan.work.footprint
    types = ", ".join(
        f"{_size(size)} {kind}" for kind, size in footprint.weights.items() if size >= footprint.weights_bytes / 1000
    )
    sampling = work.experiment.sampling
    return [
        f"weights: {footprint.num_weights:,}, of which {footprint.num_trained:,} are trained ({types})",
        f"a broadcast: {_size(footprint.trained_bytes)} to each node",
        f"a group: {_size(work.group_bytes)} at most, {sampling.group_size} rollouts of {work.decisions_per_rollout} "
        f"queries of {_size(footprint.decision_bytes)}; an update has {sampling.groups_per_update} groups",
    ]


def _is_known(plan: "PlanFound", nodes: Nodes) -> bool:
    """Whether GPUs and environments are part of the plan."""
    return plan.environment is not None and _gpu_is_known(plan, nodes)


def _gpu_is_known(plan: "PlanFound", nodes: Nodes) -> bool:
    return nodes.gpu_bytes is not None or not any(process.gpu for process in plan.processes)


def _memory(plan: "PlanFound", nodes: Nodes) -> list[str]:
    from ript_ray.planning.fit import node_bytes

    need, there = node_bytes(plan.processes, nodes), nodes.memory_bytes
    lines = [f"main memory: the driver's node needs {_size(need)} of {_size(there)}"]
    if plan.environment is None:
        lines[0] += ", without environments, which --measure adds"
    if not _gpu_is_known(plan, nodes):
        lines.append("GPUs: whether they suffice is not known, for this machine has none; give --gpu-memory-gib")
    return lines


def _times(plan: "PlanFound", acceptance: float) -> list[str]:
    if plan.environment is None:
        return ["times: not measured; --measure takes a few steps on this machine"]
    cost, policy = plan.environment, plan.policy
    lines = [
        f"an environment: step {1e3 * cost.step_s:,.2f} ms, observation {1e3 * cost.observe_s:,.2f} ms, "
        f"reset {1e3 * cost.reset_s:,.1f} ms, {_size(cost.more_bytes)}"
    ]
    if policy is None or plan.update is None:
        return lines
    lines.append(
        f"the policy: a query for {plan.work.rollouts_per_request} rollouts {1e3 * policy.query_s:,.1f} ms on "
        f"{policy.actor_device}, an optimizer step {1e3 * policy.decision_s:,.3f} ms a decision on "
        f"{policy.learner_device}"
    )
    fast, slow = plan.update
    lines.append(
        f"an update: {fast.total_s:,.1f} to {slow.total_s:,.1f} s with {plan.num_actors} actors: "
        f"rollouts {fast.rollouts_s:,.1f} to {slow.rollouts_s:,.1f}, learner {fast.learner_s:,.1f} to "
        f"{slow.learner_s:,.1f}, if {acceptance:.0%} of the groups are mixed, rollouts end between half and full "
        "length, and all machines are as fast as this one"
    )
    return lines


def _size(num_bytes: float) -> str:
    """Return a size in words, with three digits."""
    unit, factor = next(
        each for each in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if num_bytes >= each[1] or each[1] == 1e3
    )
    value = num_bytes / factor
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
