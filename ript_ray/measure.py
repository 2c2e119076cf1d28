"""Measuring a checkpoint again."""

import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ript_ray import checkpoint
from ript_ray.build import runtime_parts
from ript_ray.errors import CheckpointError
from ript_ray.evaluate import evaluate
from ript_ray.pipeline import held_out_contexts
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.open import open_runtime, session
from ript_ray.view import results_table


def measure_checkpoint(
    path: Path, *, contexts_per_task: int | None, tasks: tuple[str, ...] | None, out: Path | None, cluster: Cluster
) -> int:
    """Print success on held-out contexts; returns the exit code.

    Args:
        path: A checkpoint or a run's folder.
        contexts_per_task: Held-out contexts per task, or none for the experiment's own number.
        tasks: Tasks, or none for the experiment's own.
        out: Where the figures go as JSON, if anywhere.
        cluster: Where it runs.

    Raises:
        CheckpointError: There is no valid checkpoint, or `out` exists or cannot be written.
        ConfigError: There is no such task, or a number is out of range.
    """
    if out is not None and out.exists():
        raise CheckpointError(f"{out} exists already; nothing is overwritten")
    if out is not None and not out.parent.is_dir():
        raise CheckpointError(f"{out} cannot be written: there is no folder {out.parent}")
    source = checkpoint.load(checkpoint.find(path))
    source()  # weights that do not fit are refused here, not in an actor
    experiment = source.experiment
    if tasks is not None:
        experiment = replace(experiment, tasks=tasks)
    if contexts_per_task is not None:
        chosen = replace(experiment.evaluation, contexts_per_task=contexts_per_task)
        experiment = replace(experiment, evaluation=chosen)
    parts, console = runtime_parts(source), Console()
    with session(cluster), open_runtime(parts, cluster, with_learner=False, report=console.print) as runtime:
        result = evaluate(
            runtime,
            held_out_contexts(experiment),
            batch_size=experiment.evaluation.batch_size,
            seed=experiment.seed,
        )
    console.print(results_table({"success": result}, f"{path}: held-out contexts"))
    if out is not None:
        out.write_text(json.dumps(result.to_json(), indent=2) + "\n")
    return 0
