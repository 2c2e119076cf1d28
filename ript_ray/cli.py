"""The command `ript-ray`: everything that is done with finished runs and with the machine."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from ript_ray.command import run_command
from ript_ray.doctor import diagnose
from ript_ray.runtime.cluster import Cluster


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
        # Imported here: `doctor` must answer where one of these packages is missing or broken.
        from ript_ray.measure import measure_checkpoint

        return measure_checkpoint(
            self.checkpoint,
            contexts_per_task=self.contexts_per_task,
            tasks=self.tasks,
            out=self.out,
            cluster=self.cluster,
        )


@dataclass(frozen=True)
class Resume:
    """Go on with an interrupted run from its newest valid checkpoint, as if it had not been interrupted.

    Attributes:
        run_folder: The run's folder.
        view: What is shown: auto (live in a terminal, quiet elsewhere), lines (one per update), quiet.
        cluster: Where it runs; it may be another one than before.
    """

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="run")]
    view: Literal["auto", "lines", "quiet"] = "auto"
    cluster: Cluster = field(default_factory=Cluster)

    def run(self) -> int:
        """Go on, print the results."""
        from ript_ray.launch import resume
        from ript_ray.view import ViewMode

        return resume(self.run_folder, self.cluster, ViewMode(self.view))


@dataclass(frozen=True)
class SyncTracking:
    """Send a run's metrics and results to the tracking store, for what did not arrive while it went on.

    The store is the one that MLFLOW_TRACKING_URI names. What has arrived already is not stored twice.

    Attributes:
        run_folder: The run's folder.
    """

    run_folder: Annotated[Path, tyro.conf.Positional]

    def run(self) -> int:
        """Send it, say how much it was."""
        from ript_ray.run_folder import RunFolder
        from ript_ray.sync import sync_tracking

        print(f"{sync_tracking(RunFolder(self.run_folder))} points are in the tracking store")
        return 0


@dataclass(frozen=True)
class Doctor:
    """Say what this machine has and lacks, with the command that mends each."""

    def run(self) -> int:
        """Print the findings; 1 where something that is needed is missing."""
        return diagnose(Console())


def main() -> None:
    """Entry point of `ript-ray`."""
    commands: dict[str, Callable[..., Any]] = {
        "evaluate": Evaluate,
        "resume": Resume,
        "sync-tracking": SyncTracking,
        "doctor": Doctor,
    }
    run_command(lambda: tyro.extras.subcommand_cli_from_dict(commands).run())
