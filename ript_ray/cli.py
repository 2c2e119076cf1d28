"""The command `ript-ray`: everything that is done with finished runs and with the machine."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from ript_ray import checkpoint
from ript_ray.build import runtime_parts
from ript_ray.doctor import diagnose
from ript_ray.errors import CheckpointError
from ript_ray.evaluate import evaluate
from ript_ray.launch import check_cluster, run_command
from ript_ray.pipeline import held_out_contexts
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.on_ray import RayRuntime
from ript_ray.view import results_table


@dataclass(frozen=True)
class Evaluate:
    """Measure a checkpoint on held-out contexts, with 95 % intervals.

    The contexts and the seed of every rollout are those of the checkpoint's experiment, so a run's own
    figures come out again.

    Attributes:
        checkpoint: A checkpoint, or a run's folder (its newest checkpoint).
        contexts_per_task: Held-out contexts per task, at least 1; as in the experiment unless given.
        tasks: Tasks to measure on; those of the experiment unless given.
        out: Write the figures to this JSON file, which must not exist.
        cluster: Where it runs.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    contexts_per_task: int | None = None
    tasks: tuple[str, ...] | None = None
    out: Path | None = None
    cluster: Cluster = field(default_factory=Cluster)

    def run(self) -> int:
        """Measure, print, and write what was asked for."""
        if self.out is not None and self.out.exists():
            raise CheckpointError(f"{self.out} exists already; nothing is overwritten")
        source = checkpoint.load(checkpoint.find(self.checkpoint))
        experiment = source.experiment
        if self.tasks is not None:
            experiment = replace(experiment, tasks=self.tasks)
        if self.contexts_per_task is not None:
            chosen = replace(experiment.evaluation, contexts_per_task=self.contexts_per_task)
            experiment = replace(experiment, evaluation=chosen)
        check_cluster(self.cluster)
        runtime = RayRuntime(runtime_parts(source), self.cluster)
        try:
            result = evaluate(
                runtime,
                held_out_contexts(experiment),
                batch_size=experiment.evaluation.batch_size,
                seed=experiment.seed,
            )
        finally:
            runtime.close()
        Console().print(results_table({"success": result}, f"{self.checkpoint}: held-out contexts"))
        if self.out is not None:
            self.out.write_text(json.dumps(asdict(result), indent=2) + "\n")
        return 0


@dataclass(frozen=True)
class Doctor:
    """Say what this machine has and lacks, with the command that mends each."""

    def run(self) -> int:
        """Print the findings; 1 where something that is needed is missing."""
        return diagnose(Console())


def main() -> None:
    """Entry point of `ript-ray`."""
    commands: dict[str, Callable[..., Any]] = {"evaluate": Evaluate, "doctor": Doctor}
    run_command(lambda: tyro.extras.subcommand_cli_from_dict(commands).run())
