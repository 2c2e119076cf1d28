"""Where metrics go besides the metrics log; MLflow's tracker uploads them in a background thread.

While the store is down, hangs or fails, the thread retries with exponential backoff until the run ends; the training
loop never waits for it. `ript-ray sync-tracking` uploads what was not delivered by then.
"""

import logging
import threading
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from ript_ray.tracking.metrics_log import MetricPoint
from ript_ray.tracking.mlflow_run import Identity, MlflowRun
from ript_ray.tracking.store import without_password

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 10.0
"""Longest time that a store which fails or hangs may delay the end of a run."""

CLOSE_LIMIT_S = 60.0
"""The same for a store that has not failed: on a busy machine, importing MLflow and opening its store take long."""

FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 30.0
"""Exponential backoff: the pause between attempts doubles from the first to the longest."""

_POINTS_PER_CALL = 20
_CHECK_S = 0.1
NO_RESPONSE = "no response yet"


class RunStatus(StrEnum):
    """MLflow's status of a run that has ended."""

    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"


class Tracker(Protocol):
    """Takes what a run logs; never raises for a store or a disk that fails."""

    def log(self, point: MetricPoint) -> None:
        """Take a point."""

    def log_files(self, paths: Sequence[Path]) -> None:
        """Take files; one that is taken again replaces the earlier one."""

    def close(self, status: RunStatus) -> str | None:
        """End the run; returns what was not delivered and why, or None."""


class MlflowTracker:
    """Uploads points and files to MLflow in the background."""

    def __init__(
        self, identity: Identity, store: str, earlier: Sequence[MetricPoint] = (), *, max_pause_s: float = MAX_PAUSE_S
    ):
        """Start the upload thread; it logs whether the store answers.

        Args:
            identity: The run in the tracking store.
            store: URI of the store.
            earlier: Points of earlier processes, uploaded again; the store deduplicates them.
            max_pause_s: Upper limit of the backoff, at least `FIRST_PAUSE_S`.
        """
        self._identity = identity
        self._store = store
        self._max_pause_s = max_pause_s
        # Appended to by the training loop, read by the upload thread: both are atomic for a list.
        self._points: list[MetricPoint] = list(earlier)
        self._files: list[Path] = []
        self._status: RunStatus | None = None
        self._num_sent = 0
        self._num_files_sent = 0
        self._error = NO_RESPONSE
        self._answers: bool | None = None
        self._has_work = threading.Event()
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._upload_loop, name="mlflow-upload", daemon=True)
        self._thread.start()

    def log(self, point: MetricPoint) -> None:
        """Queue a point for upload."""
        self._points.append(point)
        self._has_work.set()

    def log_files(self, paths: Sequence[Path]) -> None:
        """Queue files for upload as artifacts."""
        self._files.extend(paths)
        self._has_work.set()

    def close(self, status: RunStatus) -> str | None:
        """Upload the rest and end the MLflow run with `status`; see `CLOSE_TIMEOUT_S` and `CLOSE_LIMIT_S`.

        Returns:
            What was not delivered to the tracking store and why, or None.
        """
        self._status = status
        self._closing.set()
        self._has_work.set()
        limit = time.monotonic() + CLOSE_LIMIT_S
        self._thread.join(CLOSE_TIMEOUT_S)
        while self._error is NO_RESPONSE and self._thread.is_alive() and time.monotonic() < limit:
            self._thread.join(_CHECK_S)
        self._given_up.set()
        if not self._thread.is_alive():
            return None
        missing = len(self._points) - self._num_sent
        what = f"{missing} of {len(self._points)} points" if missing else "the run's final status or its results"
        return f"{what} were not delivered to the tracking store ({self._error})"

    def _upload_loop(self) -> None:
        run: MlflowRun | None = None
        pause_s = FIRST_PAUSE_S
        while not self._given_up.is_set():
            status = self._status  # read first, so that all points logged before the end are uploaded before it
            try:
                if run is None:
                    run = MlflowRun(self._identity, self._store)
                    run.mark_running()
                self._upload(run, status)
            except Exception as error:  # boundary: a tracking error must never end a run
                self._error = f"{type(error).__name__}: {error}".split("\n", 1)[0]
                self._announce(answers=False)
                pause_s = self._pause(pause_s)
                continue
            self._announce(answers=True)
            if status is not None:
                return
            pause_s, self._error = FIRST_PAUSE_S, NO_RESPONSE
            self._has_work.wait()
            self._has_work.clear()

    def _announce(self, *, answers: bool) -> None:
        """Say whether the store answers: at the start, and whenever that changes."""
        if answers == self._answers or self._given_up.is_set():
            return
        self._answers = answers
        store = without_password(self._store)
        if answers:
            logger.info("tracking: MLflow, %s, experiment %s", store, self._identity.experiment)
        else:
            logger.warning(
                "tracking: MLflow, %s, takes nothing (%s): everything is kept in metrics.jsonl and uploaded as soon as "
                "it does; MLFLOW_TRACKING_URI names another store",
                store,
                self._error,
            )

    def _upload(self, run: MlflowRun, status: RunStatus | None) -> None:
        while part := self._points[self._num_sent : self._num_sent + _POINTS_PER_CALL]:
            run.log(part)
            self._num_sent += len(part)
        if status is not None:
            run.end(status)  # before the files: a store may accept metrics but no artifacts
        while part_files := self._files[self._num_files_sent :]:
            run.log_files(part_files)
            self._num_files_sent += len(part_files)

    def _pause(self, pause_s: float) -> float:
        """Back off before the next attempt, only briefly while `close` waits; return the next pause."""
        if self._closing.is_set():
            self._given_up.wait(FIRST_PAUSE_S)
        else:
            self._closing.wait(pause_s)
        return min(2 * pause_s, self._max_pause_s)


def now_ms() -> int:
    """Return the Unix time in milliseconds."""
    return time.time_ns() // 1_000_000
