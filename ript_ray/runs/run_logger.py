"""The books of a run, whatever stage it is in: its clock, its journal, its tracking, and how it ended."""

import contextlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ript_ray.config.experiment import Experiment
from ript_ray.errors import StorageError
from ript_ray.runs.checkpoint import TrainingState
from ript_ray.runs.run_dir import RunDir
from ript_ray.storage.atomic import atomic_write
from ript_ray.tracking.metrics_log import MetricPoint, MetricsLog
from ript_ray.tracking.mlflow_run import Identity
from ript_ray.tracking.tracker import RunStatus, Tracker, now_ms
from ript_ray.types import Stage

logger = logging.getLogger(__name__)


class RunLogger:
    """Open while a run goes on. A context manager: however the block ends, the journal and the MLflow run are closed.

    Attributes:
        folder: The run's folder.
        kept: Points of an earlier process that still hold.
        tracking_error: What went wrong with the tracking store, or none; known once the books are closed.
    """

    def __init__(self, folder: RunDir, experiment: Experiment, training: TrainingState | None = None):
        """Open journal and MLflow run.

        Args:
            folder: The run's folder.
            experiment: What is learned.
            training: Where an earlier process left off; what it wrote down after that is dropped.

        Raises:
            StorageError: The disk does not take the shorter journal.
        """
        self.tracking_error: str | None = None
        self.folder = folder
        folder.status.unlink(missing_ok=True)  # it tells of the earlier process
        self._metrics_log = MetricsLog(folder.metrics_log)
        stage, number = (training.stage, training.number) if training else (experiment.stages[0], 0)
        at_start = stage is Stage.RIPT and number == 0 and folder.before.exists()  # that measurement is not taken again
        self.restored_points = self._metrics_log.truncate_after(stage, number, keep_evaluation=at_start)
        self._earlier_s = max(
            [training.totals.get("wall_s", 0.0) if training else 0.0, *(p.wall_s for p in self.restored_points)]
        )
        self._tracker = Tracker(self._metrics_log, tracking_identity(folder, experiment), self.restored_points)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = RunStatus.KILLED if kind is KeyboardInterrupt else RunStatus.FAILED
        status = RunStatus.FINISHED if kind is None else failed
        with contextlib.suppress(StorageError):  # a disk that is full now has ended the run with its own error
            atomic_write(self.folder.status, json.dumps({"status": status}) + "\n")
        self._metrics_log.flush()
        self.tracking_error = self._tracker.close(status)

    @property
    def wall_s(self) -> float:
        """Seconds that the run has taken, those of earlier processes included."""
        return self._earlier_s + self.folder.open_s

    def log(self, stage: Stage, number: int, metrics: dict[str, float], *, env_steps: int = 0) -> MetricPoint:
        """Write down metrics.

        Args:
            stage: What the run is doing.
            number: Updates of post-training so far, or optimiser steps of a supervised stage.
            metrics: Name and value; one that is not finite is left out.
            env_steps: Environment steps of post-training so far.
        """
        point = MetricPoint(number, env_steps, self.wall_s, now_ms(), metrics, stage)
        self._tracker.log(point)
        if self._metrics_log.error:
            logger.warning("%s; trying again with the next point", self._metrics_log.error)
        return point

    def flush(self) -> None:
        """Write what the disk has not taken so far.

        Raises:
            StorageError: It still does not.
        """
        self._metrics_log.flush()
        if self._metrics_log.error:
            raise StorageError(self._metrics_log.error)

    def log_artifacts(self, files: Sequence[Path]) -> None:
        """Have the tracking store keep files."""
        self._tracker.log_files(files)


def tracking_identity(folder: RunDir, experiment: Experiment) -> Identity:
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
