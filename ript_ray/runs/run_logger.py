"""What a run logs, whatever stage it is in: its clock, its metrics, its MLflow run, and how it ended."""

import contextlib
import hashlib
import json
import logging
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ript_ray.config.experiment import Experiment
from ript_ray.config.serialization import flatten, to_json
from ript_ray.errors import StorageError
from ript_ray.runs.checkpoint import RunTotals, TrainingState
from ript_ray.runs.driver_watch import DriverWatch
from ript_ray.runs.run_dir import RunDir
from ript_ray.tracking.metrics_log import MetricPoint, MetricsLog, PointKind, read_metrics
from ript_ray.tracking.mlflow_run import SEEDS_TAG, Identity
from ript_ray.tracking.tracker import RunStatus, Tracker, now_ms
from ript_ray.types import RIPT

logger = logging.getLogger(__name__)


class RunLogger:
    """Open while a run is in progress. A context manager: however the block ends, metrics and MLflow run are closed.

    Attributes:
        folder: The run's directory.
        restored_points: Points of an earlier process that are still valid.
        tracking_error: What went wrong with the tracking store, or none; known once this is closed.
    """

    def __init__(self, folder: RunDir, experiment: Experiment, state: TrainingState | None = None):
        """Open the metrics log and the MLflow run.

        Args:
            folder: The run's directory.
            experiment: What is learned.
            state: Where an earlier process stopped; what it logged after that is dropped.

        Raises:
            StorageError: The truncated metrics log cannot be written.
        """
        self.tracking_error: str | None = None
        self.folder = folder
        self._has_failed = False
        self._opened = time.perf_counter()
        folder.status.unlink(missing_ok=True)  # it is the earlier process's
        self._metrics_log = MetricsLog(folder.metrics_log)
        stage, number = (state.stage, state.number) if state else (experiment.stages[0], 0)
        evaluation = folder.before if number == 0 else folder.earlier_results(number)  # neither is made again
        is_evaluated = stage == RIPT and evaluation.exists()
        earlier = read_metrics(folder.metrics_log)
        self.restored_points = self._metrics_log.truncate_after(
            stage, number, stages=experiment.all_stages, keep_evaluation=is_evaluated
        )
        if len(self.restored_points) < len(earlier):
            folder.renew_run_id()
        totals = state.totals if state else RunTotals()
        self._earlier_s = max([totals.wall_s, *(point.wall_s for point in self.restored_points)])
        self._identity = tracking_identity(folder, experiment)
        self._tracker = Tracker(self._metrics_log, self._identity, self.restored_points)
        self._watch: DriverWatch | None = None

    def __enter__(self) -> Self:
        self._watch = DriverWatch(self.folder.path, self._identity)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self._has_failed:
            status = RunStatus.FINISHED
        else:
            status = RunStatus.KILLED if kind is KeyboardInterrupt else RunStatus.FAILED
        if kind is not None:
            what = "stopped" if kind is KeyboardInterrupt else "failed; once the cause is mended,"
            logger.warning("the run has %s: it goes on with ript-ray resume %s", what, self.folder.path)
        with contextlib.suppress(StorageError):  # a disk that is full now has ended the run with its own error
            self.folder.write_status(status)
        self._metrics_log.flush()
        self._tracker.log_files(artifacts(self.folder))
        self.tracking_error = self._tracker.close(status)
        if self._watch:
            self._watch.end()

    @property
    def wall_s(self) -> float:
        """Seconds that the run has taken, those of earlier processes included."""
        return self._earlier_s + time.perf_counter() - self._opened

    def log(
        self, stage: str, number: int, metrics: dict[str, float], *, kind: PointKind, env_steps: int = 0
    ) -> MetricPoint:
        """Log metrics.

        Args:
            stage: The stage in progress.
            number: Updates of post-training so far, or optimizer steps of a supervised stage.
            metrics: Name and value; one that is not finite is left out.
            kind: See `MetricPoint`.
            env_steps: Environment steps of post-training so far.
        """
        point = MetricPoint(number, env_steps, self.wall_s, now_ms(), metrics, kind, stage)
        self._tracker.log(point)
        if self._metrics_log.error:
            logger.warning("%s; retrying with the next point", self._metrics_log.error)
        return point

    def flush(self) -> None:
        """Write all points that could not be written so far.

        Raises:
            StorageError: They still cannot.
        """
        self._metrics_log.flush()
        if self._metrics_log.error:
            raise StorageError(self._metrics_log.error)

    def fail(self) -> None:
        """Mark the run as failed, though no error ends it: it found nothing to learn from."""
        self._has_failed = True


def artifacts(folder: RunDir) -> list[Path]:
    """Return the files of a run that go to the tracking store."""
    files = (folder.config, folder.path / "versions.json", folder.machine, folder.groups, folder.results, folder.curve)
    return [path for path in files if path.exists()]


def tracking_identity(folder: RunDir, experiment: Experiment) -> Identity:
    """Return how a run is known in the tracking store."""
    where: dict[str, Any] = json.loads(folder.machine.read_text()) if folder.machine.exists() else {}
    tasks = experiment.tasks[0] if len(experiment.tasks) == 1 else f"{len(experiment.tasks)}-tasks"
    settings = {**asdict(experiment), "cluster": where.get("cluster", {})}
    same_but_seed = to_json(replace(experiment, seed=0, start_from=None))
    tags = {
        "folder": str(folder.path),
        "num_updates": experiment.num_updates,  # a parameter cannot change if the run is extended
        SEEDS_TAG: hashlib.sha256(same_but_seed.encode()).hexdigest(),  # of runs that differ in their seeds
        **folder.versions,
        **{f"resumed.{name}": version for name, version in folder.resumed_versions.items()},
        **flatten({"machine": where.get("machine", {})}),
    }
    parent = _parent_of(experiment)
    if parent is not None:
        tags["started_from"] = str(parent.path)
    group = f"{tasks}-{experiment.policy.kind}"
    return Identity(
        run_id=folder.run_id,
        experiment=experiment.name,
        run=f"{group}-{folder.name}",
        params={name: str(value) for name, value in flatten(settings).items()},
        tags={name: str(value) for name, value in tags.items()},
        parent=(parent.experiment.name, parent.run_id) if parent else None,
        replaced=folder.replaced_run_ids,
        group=group,
    )


def _parent_of(experiment: Experiment) -> RunDir | None:
    """Return the run that an experiment starts from, if it is one or a checkpoint of one and is still there."""
    start = experiment.start_from
    candidates = [start, start.parent.parent] if start is not None else []
    return next((RunDir(path) for path in candidates if (path / "run-id").exists()), None)
