"""`ript-ray evaluate` and `ript-ray compare`: evaluations as tables, JSON files and videos."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from ript_ray import api
from ript_ray.api import EvaluationOverrides, PolicyComparison
from ript_ray.cli.entrypoint import print_line
from ript_ray.config.serialization import SCHEMA
from ript_ray.data.contexts import held_out_requests
from ript_ray.errors import CheckpointError
from ript_ray.evaluation.tables import difference_table, results_table
from ript_ray.evaluation.video import VideoSettings
from ript_ray.runs import checkpoint
from ript_ray.runs.killed import closing_killed_runs_beside
from ript_ray.runs.lineage import demonstrations_of, marked
from ript_ray.runs.metrics import gain_metrics, rate_metrics
from ript_ray.runs.recorder import success_metrics
from ript_ray.runs.replay import write_evaluation_videos
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.runs.tracked_evaluation import track_evaluation
from ript_ray.runtime.cluster import Cluster
from ript_ray.storage.atomic import atomic_write, require_absent


def evaluate_checkpoint(
    path: Path,
    overrides: EvaluationOverrides,
    *,
    out: Path | None,
    videos: Path | None,
    video_settings: VideoSettings,
    cluster: Cluster,
) -> int:
    """Print success on held-out contexts; returns the exit code.

    Args:
        path: A checkpoint or a run.
        overrides: Other tasks, another number of contexts, another split, other scenes.
        out: Where the figures go as JSON, if anywhere.
        videos: Folder for a video of a success and a failure of each task, if wanted.
        video_settings: Size and quality of the videos.
        cluster: Where it runs.

    Raises:
        CheckpointError: There is no valid checkpoint.
        ConfigError: There is no such task, or a number is out of range.
        StorageError: `out` or `videos` exists, or cannot be written.
        ReplayError: A rollout to film does not come out as it was evaluated.
    """
    _require_writable(out, videos)
    with closing_killed_runs_beside(path):
        result = api.evaluate(path, overrides, cluster=cluster)
    console = Console(record=True)
    console.print(
        results_table({"success": result}, f"{marked(path)}: {overrides.split} contexts{_changed(overrides)}")
    )
    content = {"schema": SCHEMA, "demonstrations": demonstrations_of(path), **_benchmark(overrides), **result.to_json()}
    figures = json.dumps(content, indent=2) + "\n"
    if out is not None:
        atomic_write(out, figures)
    if videos is not None:
        saved = checkpoint.load(checkpoint.find(path))
        policy = SavedPolicy(overrides.apply_to(saved.experiment), saved.arrays).with_instructions()
        requests = held_out_requests(policy.experiment, overrides.split)
        written = write_evaluation_videos(policy, requests, result, folder=videos, video_settings=video_settings)
        for video in written:
            print_line(console, f"video: {video}")
    metrics = success_metrics(result, overrides.split)
    _track("evaluate", path, overrides, metrics, console=console, figures=figures)
    return 0


def compare_checkpoints(
    first: Path, second: Path, overrides: EvaluationOverrides, *, out: Path | None, cluster: Cluster
) -> int:
    """Print success of two policies on the same contexts, and their paired difference; returns the exit code.

    Args:
        first: A checkpoint or a run.
        second: A checkpoint, a run or a model folder.
        overrides: Other tasks, another number of contexts, another split, other scenes.
        out: Where the figures go as JSON, if anywhere.
        cluster: Where it runs.

    Raises:
        RiptError: See `api.compare`.
        StorageError: `out` exists or cannot be written.
    """
    _require_writable(out)
    with closing_killed_runs_beside(first):
        found = api.compare(first, second, overrides, cluster=cluster)
    results, console = {"A": found.first, "B": found.second}, Console(record=True)
    print_line(console, f"A: {marked(first)}\nB: {marked(second)}")
    seed, changed = found.experiment.evaluation_seed, _changed(overrides)
    title = f"{overrides.split} contexts of {found.experiment.name}{changed}, seed {seed}"
    console.print(results_table(results, title))
    console.print(difference_table(found.difference, "the same contexts and seeds, in pairs; p of a task: after Holm"))
    content = {
        "schema": SCHEMA,
        "first": str(first),
        "second": str(second),
        "demonstrations": {"first": demonstrations_of(first), "second": demonstrations_of(second)},
        **_benchmark(overrides),
        **{name: result.to_json() for name, result in results.items()},
        "difference": found.difference.to_json(),
    }
    figures = json.dumps(content, indent=2) + "\n"
    if out is not None:
        atomic_write(out, figures)
    _track("compare", first, overrides, comparison_metrics(found), console=console, figures=figures, second=second)
    return 0


def comparison_metrics(found: PolicyComparison) -> dict[str, float]:
    """Return success of both policies and their difference, overall and per task, with intervals and p-values."""
    difference = found.difference
    metrics = rate_metrics("compare/first", found.first.overall) | rate_metrics("compare/second", found.second.overall)
    metrics |= gain_metrics("compare/difference", difference.overall) | {"compare/p": difference.overall.p_value}
    for task, each in difference.per_task.items():
        metrics |= gain_metrics(f"compare/difference/{task}", each)
        metrics[f"compare/p_holm/{task}"] = difference.holm_p_values[task]
    return metrics


def _track(
    command: str,
    path: Path,
    overrides: EvaluationOverrides,
    metrics: dict[str, float],
    *,
    console: Console,
    figures: str,
    **settings: Path,
) -> None:
    # A figure on other scenes has another name: charts of a figure never show both.
    prefix = "".join(f"{name}-{value}/" for name, value in overrides.benchmark.items())
    track_evaluation(
        command,
        path,
        settings={**settings, **asdict(overrides)},
        metrics={f"{prefix}{name}": value for name, value in metrics.items()},
        files={f"{command}.json": figures, f"{command}.txt": console.export_text()},
    )


def _changed(overrides: EvaluationOverrides) -> str:
    """Say what differs from the experiment's benchmark: ", perturbation position"; usually nothing."""
    return "".join(f", {name.replace('_', ' ')} {value}" for name, value in overrides.benchmark.items())


def _benchmark(overrides: EvaluationOverrides) -> dict[str, dict[str, str]]:
    return {"benchmark": dict(overrides.benchmark)} if overrides.benchmark else {}


def _require_writable(*paths: Path | None) -> None:
    for path in paths:
        if path is not None:
            require_absent(path)
            if not path.parent.is_dir():
                raise CheckpointError(f"{path} cannot be written: there is no folder {path.parent}")
