"""The books of a run, whatever stage it is in: its clock, its journal, its tracking, and how it ended."""

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ript_ray.config.experiment import Experiment
from ript_ray.errors import UnwritableError
from ript_ray.runs.checkpoint import Training
from ript_ray.runs.run_dir import RunFolder
from ript_ray.storage.atomic import write_whole
from ript_ray.tracking.metrics_log import Journal, Point
from ript_ray.tracking.mlflow_run import Identity
from ript_ray.tracking.tracker import RunStatus, Tracker, now_ms
from ript_ray.types import Stage


class Books:
    """Open while a run goes on. A context manager: however the block ends, the journal and the MLflow run are closed.

    Attributes:
        folder: The run's folder.
        announce: Told in words of what cannot be written now.
        kept: Points of an earlier process that still hold.
        tracking_problem: What went wrong with the tracking store, or none; known once the books are closed.
    """

    def __init__(
        self,
        folder: RunFolder,
        experiment: Experiment,
        training: Training | None = None,
        announce: Callable[[str], None] = lambda _: None,
    ):
        """Open journal and MLflow run.

        Args:
            folder: The run's folder.
            experiment: What is learned.
            training: Where an earlier process left off; what it wrote down after that is dropped.
            announce: Told in words of what cannot be written now.

        Raises:
            UnwritableError: The disk does not take the shorter journal.
        """
        self.tracking_problem: str | None = None
        self.folder = folder
        self.announce = announce
        folder.status.unlink(missing_ok=True)  # it tells of the earlier process
        self._journal = Journal(folder.journal)
        stage, number = (training.stage, training.number) if training else (experiment.stages[0], 0)
        at_start = stage is Stage.RIPT and number == 0 and folder.before.exists()  # that measurement is not taken again
        self.kept = self._journal.rewind(stage, number, keep_evaluation=at_start)
        self._earlier_s = max([training.totals.get("wall_s", 0.0) if training else 0.0, *(p.wall_s for p in self.kept)])
        self._tracker = Tracker(self._journal, identity_of(folder, experiment), self.kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = RunStatus.KILLED if kind is KeyboardInterrupt else RunStatus.FAILED
        status = RunStatus.FINISHED if kind is None else failed
        with contextlib.suppress(UnwritableError):  # a disk that is full now has ended the run with its own error
            write_whole(self.folder.status, json.dumps({"status": status}) + "\n")
        self._journal.flush()
        self.tracking_problem = self._tracker.close(status)

    @property
    def wall_s(self) -> float:
        """Seconds that the run has taken, those of earlier processes included."""
        return self._earlier_s + self.folder.open_s

    def log(self, stage: Stage, number: int, metrics: dict[str, float], *, env_steps: int = 0) -> Point:
        """Write down metrics.

        Args:
            stage: What the run is doing.
            number: Updates of post-training so far, or optimiser steps of a supervised stage.
            metrics: Name and value; one that is not finite is left out.
            env_steps: Environment steps of post-training so far.
        """
        point = Point(number, env_steps, self.wall_s, now_ms(), metrics, stage)
        self._tracker.log(point)
        if self._journal.problem:
            self.announce(f"{self._journal.problem}; trying again with the next point")
        return point

    def require_complete(self) -> None:
        """Write what the disk has not taken so far.

        Raises:
            UnwritableError: It still does not.
        """
        self._journal.flush()
        if self._journal.problem:
            raise UnwritableError(self._journal.problem)

    def publish(self, files: Sequence[Path]) -> None:
        """Have the tracking store keep files."""
        self._tracker.log_files(files)


def identity_of(folder: RunFolder, experiment: Experiment) -> Identity:
    """How a run is known in the tracking store."""
    return Identity(
        run_id=folder.run_id,
        experiment=experiment.name,
        run=folder.name,
        params=_flatten(asdict(experiment)),
        tags={"folder": str(folder.path), **folder.versions},
    )


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `outer.inner` -> text, the form MLflow compares runs by."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)
    return flat
