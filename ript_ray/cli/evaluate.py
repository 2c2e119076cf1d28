"""Measuring checkpoints: one again, or two against each other on the same contexts with the same seeds."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ript_ray.checks import require
from ript_ray.config.experiment import Experiment
from ript_ray.data.contexts import held_out_contexts
from ript_ray.errors import CheckpointError
from ript_ray.evaluation.comparison import Comparison
from ript_ray.evaluation.evaluate import EvaluationResult, evaluate
from ript_ray.evaluation.tables import difference_table, results_table
from ript_ray.evaluation.video import VideoSettings
from ript_ray.policies.base import Policy
from ript_ray.policies.quest.presets import Interface
from ript_ray.rl.protocols import Components
from ript_ray.runs import checkpoint
from ript_ray.runs.model_dir import is_model, load_model
from ript_ray.runs.replay import write_evaluation_videos
from ript_ray.runs.saved_policy import SavedPolicy, components_of
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.factory import open_runtime, session
from ript_ray.storage.atomic import atomic_write, require_absent


@dataclass(frozen=True)
class EvaluationOverrides:
    """On how many held-out contexts, and of which tasks, where not on those of the experiment.

    Attributes:
        per_task: Held-out contexts per task, or none for the experiment's own number.
        tasks: Tasks, or none for the experiment's own.
    """

    per_task: int | None = None
    tasks: tuple[str, ...] | None = None

    def apply_to(self, experiment: Experiment) -> Experiment:
        """The experiment with these.

        Raises:
            ConfigError: There is no such task, or the number is out of range.
        """
        if self.tasks is not None:
            experiment = replace(experiment, tasks=self.tasks)
        if self.per_task is not None:
            evaluation = replace(experiment.evaluation, contexts_per_task=self.per_task)
            experiment = replace(experiment, evaluation=evaluation)
        return experiment


def evaluate_checkpoint(
    path: Path,
    contexts: EvaluationOverrides,
    *,
    out: Path | None,
    videos: Path | None,
    video_settings: VideoSettings,
    cluster: Cluster,
) -> int:
    """Print success on held-out contexts; returns the exit code.

    Args:
        path: A checkpoint or a run's folder.
        contexts: On what.
        out: Where the figures go as JSON, if anywhere.
        videos: Folder for a video of a success and a failure of each task, if any are wanted.
        video_settings: How videos look.
        cluster: Where it runs.

    Raises:
        CheckpointError: There is no valid checkpoint.
        ConfigError: There is no such task, or a number is out of range.
        StorageError: `out` or `videos` exists, or cannot be written.
        ReplayError: A rollout to film does not come out as it was measured.
    """
    _require_writable(out, videos)
    source = checkpoint.load(checkpoint.find(path))
    source()  # weights that do not fit are refused here, not in an actor
    experiment, console = contexts.apply_to(source.experiment), Console()
    with session(cluster):
        result = _measure(components_of(source), experiment, cluster)
    console.print(results_table({"success": result}, f"{path}: held-out contexts"))
    if out is not None:
        atomic_write(out, json.dumps(result.to_json(), indent=2) + "\n")
    if videos is not None:
        apply_to = replace(source, experiment=experiment)
        for video in write_evaluation_videos(
            apply_to, held_out_contexts(experiment), result, folder=videos, video_settings=video_settings
        ):
            console.print(f"video: {video}", highlight=False, markup=False, soft_wrap=True)
    return 0


def compare_checkpoints(
    first: Path, second: Path, contexts: EvaluationOverrides, *, out: Path | None, cluster: Cluster
) -> int:
    """Print success of two policies on the same contexts with the same seeds, and their paired difference.

    Contexts, seeds, horizon and batches are those of the first one's experiment. Returns the exit code.

    Args:
        first: A checkpoint or a run's folder.
        second: A checkpoint, a run's folder or a model folder.
        contexts: On what.
        out: Where the figures go as JSON, if anywhere.
        cluster: Where it runs.

    Raises:
        CheckpointError: There is no valid policy, or `first` is a model folder, which has no experiment.
        ConfigError: The second policy reads or does something else than the first one's benchmark offers, there is
            no such task, or a number is out of range.
        StorageError: `out` exists or cannot be written.
    """
    _require_writable(out)
    if is_model(first):
        raise CheckpointError(f"{first} holds a policy without experiment: name a run or checkpoint first")
    source = checkpoint.load(checkpoint.find(first))
    own = components_of(source)
    other = replace(own, **_contender(second, source.experiment))
    for parts in (own, other):
        parts.build_policy()  # weights that do not fit are refused here, not in an actor
    experiment, console = contexts.apply_to(source.experiment), Console()
    with session(cluster):
        results = {name: _measure(parts, experiment, cluster) for name, parts in {"A": own, "B": other}.items()}
    comparison = Comparison.of(*results.values())
    console.print(f"A: {first}\nB: {second}", highlight=False, markup=False, soft_wrap=True)
    console.print(results_table(results, f"held-out contexts of {experiment.name}, seed {experiment.seed}"))
    console.print(difference_table(comparison, "the same contexts and seeds, in pairs"))
    if out is not None:
        figures = {
            "first": str(first),
            "second": str(second),
            **{name: result.to_json() for name, result in results.items()},
            "difference": comparison.to_json(),
        }
        atomic_write(out, json.dumps(figures, indent=2) + "\n")
    return 0


def _measure(parts: Components, experiment: Experiment, cluster: Cluster) -> EvaluationResult:
    with open_runtime(parts, cluster, with_learner=False) as runtime:
        return evaluate(
            runtime,
            held_out_contexts(experiment),
            batch_size=experiment.evaluation.batch_size,
            seed=experiment.seed,
        )


def _contender(path: Path, experiment: Experiment) -> dict[str, Any]:
    """The fields of `Components` that bring another policy into an experiment."""
    build_policy: Callable[[], Policy]
    benchmark = experiment.benchmark
    if is_model(path):
        model = load_model(path)
        build_policy, interface = model, model.card.interface
    else:
        source = checkpoint.load(checkpoint.find(path))
        _require_same_benchmark(path, source, experiment)
        settings = source.experiment.policy
        build_policy, interface = source, Interface(settings, benchmark.action_dim, benchmark.state_dims)
    _require_fit(path, interface, experiment)
    return {
        "build_policy": build_policy,
        "make_environment": benchmark.with_cameras(interface.settings.cameras).make,
    }


def _require_same_benchmark(path: Path, source: SavedPolicy, experiment: Experiment) -> None:
    """Refuse a policy whose experiment shows it something else, or gives it another time."""
    ours, theirs = replace(experiment.benchmark, cameras=()), replace(source.experiment.benchmark, cameras=())
    pairs = {field.name: (getattr(theirs, field.name), getattr(ours, field.name)) for field in fields(ours)}
    pairs["max_steps"] = (source.experiment.max_steps, experiment.max_steps)
    differing = ", ".join(f"{name} {theirs}, not {ours}" for name, (theirs, ours) in pairs.items() if theirs != ours)
    require(not differing, f"{path} cannot be compared: its experiment has {differing}")


def _require_fit(path: Path, interface: Interface, experiment: Experiment) -> None:
    """Refuse a policy that reads what the benchmark has not, or acts otherwise."""
    benchmark, settings = experiment.benchmark, interface.settings
    problems = [f"camera {name}" for name in settings.cameras if name not in benchmark.image_shapes]
    problems += [
        f"sensor {name} of length {interface.state_dims[name]}"
        for name in settings.sensors
        if benchmark.state_dims.get(name) != interface.state_dims[name]
    ]
    if interface.action_dim != benchmark.action_dim:
        problems.append(f"actions of {interface.action_dim} entries")
    offered = f"{dict(benchmark.state_dims)}, {', '.join(benchmark.image_shapes)}, actions of {benchmark.action_dim}"
    require(not problems, f"{path} cannot be compared: it has {', '.join(problems)}, where there is {offered}")


def _require_writable(*paths: Path | None) -> None:
    for path in paths:
        if path is not None:
            require_absent(path)
            if not path.parent.is_dir():
                raise CheckpointError(f"{path} cannot be written: there is no folder {path.parent}")
