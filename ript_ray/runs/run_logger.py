"""What a run logs, whatever stage it is in: its clock, its metrics, and how it ended."""

import contextlib
import logging
import time
from types import TracebackType
from typing import Self

from ript_ray.config.experiment import Experiment, plugin_option
from ript_ray.errors import StorageError
from ript_ray.runs.checkpoint import RunTotals, TrainingState
from ript_ray.runs.driver_watch import DriverWatch
from ript_ray.runs.run_dir import RunDir
from ript_ray.runs.tracked import artifacts, open_trackers
from ript_ray.tracking.metrics_log import MetricPoint, MetricsLog, PointKind
from ript_ray.tracking.tracker import RunStatus, now_ms
from ript_ray.types import RIPT

logger = logging.getLogger(__name__)


class RunLogger:
    """Open while a run is in progress. A context manager: however the block ends, metrics log and trackers are closed.

    Attributes:
        folder: The run's directory.
        restored_points: Points of an earlier process that are still valid.
        tracking_error: What the trackers did not take, or none; known once this is closed.
    """

    def __init__(self, folder: RunDir, experiment: Experiment, state: TrainingState | None = None):
        """Open the metrics log and the trackers.

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
        self._plugins = plugin_option(experiment)
        self._opened = time.perf_counter()
        folder.status.unlink(missing_ok=True)  # it is the earlier process's
        self._metrics_log = MetricsLog(folder.metrics_log)
        stage, number = (state.stage, state.number) if state else (experiment.stages[0], 0)
        evaluation = folder.before if number == 0 else folder.earlier_results(number)  # neither is made again
        is_evaluated = stage == RIPT and evaluation.exists()
        self.restored_points = self._metrics_log.truncate_after(
            stage,
            number,
            stages=experiment.all_stages,
            keep_evaluation=is_evaluated,
            before_dropping=folder.renew_run_id,  # before: a store that has these points would have them twice
        )
        totals = state.totals if state else RunTotals()
        self._earlier_s = max([totals.wall_s, *(point.wall_s for point in self.restored_points)])
        self._trackers = open_trackers(folder, experiment, self.restored_points)
        for tracker in self._trackers:
            tracker.log_files(artifacts(folder))  # what is there already, so that a run that dies is known by it
        self._watch: DriverWatch | None = None

    def __enter__(self) -> Self:
        try:
            self._watch = DriverWatch(self.folder.path)
        except OSError as error:
            logger.warning("no process watches this one (%s): if it is killed by force, nothing closes the run", error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self._has_failed:
            status = RunStatus.FINISHED
        else:
            status = RunStatus.KILLED if kind is KeyboardInterrupt else RunStatus.FAILED
        if kind is not None:
            what = "has stopped:" if kind is KeyboardInterrupt else "has failed; once the cause is mended,"
            command = f"ript-ray resume {self.folder.path}{self._plugins}"
            logger.warning("the run %s it goes on with %s", what, command)
        with contextlib.suppress(StorageError):  # a disk that is full now has ended the run with its own error
            self.folder.write_status(status)
        self._metrics_log.flush()
        for tracker in self._trackers:
            tracker.log_files(artifacts(self.folder))
        self.tracking_error = "; ".join(filter(None, [tracker.close(status) for tracker in self._trackers])) or None
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
        point = self._metrics_log.append(point)  # first: trackers may fail, and miss what cannot be represented
        for tracker in self._trackers:
            tracker.log(point)
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
