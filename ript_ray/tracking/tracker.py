"""Metrics to the run's journal and to MLflow, never on the training path.

The journal is written first and is complete; a background thread ships it, and tries again for as long as the run
lasts where the store is down, hangs or fails. That costs the training loop nothing. What has not arrived when the
run ends is sent later by `ript-ray sync-tracking`.
"""

import threading
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from ript_ray.tracking.metrics_log import MetricPoint, MetricsLog
from ript_ray.tracking.mlflow_run import Identity, MlflowRun

CLOSE_TIMEOUT_S = 10.0
"""Longest time that shipping may delay the end of a run."""

FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 30.0
"""Pauses between attempts double from the first to the longest."""

_POINTS_PER_CALL = 20
NO_ANSWER = "no answer yet"


class RunStatus(StrEnum):
    """How a run ended, in MLflow's words."""

    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"


class Tracker:
    """Journals points and ships them in the background."""

    def __init__(
        self,
        metrics_log: MetricsLog,
        identity: Identity,
        earlier: Sequence[MetricPoint] = (),
        *,
        max_pause_s: float = MAX_PAUSE_S,
    ):
        """Start the shipping thread.

        Args:
            metrics_log: Where points are kept.
            identity: The run in the store.
            earlier: Points of an earlier process, shipped again: the store keeps each once.
            max_pause_s: Longest pause between two attempts, at least `FIRST_PAUSE_S`.
        """
        self._metrics_log = metrics_log
        self._identity = identity
        self._max_pause_s = max_pause_s
        # Appended to by the loop's thread, read by the shipping thread: both are atomic for a list.
        self._points: list[MetricPoint] = list(earlier)
        self._files: list[Path] = []
        self._status: RunStatus | None = None
        self._num_sent = 0
        self._num_files_sent = 0
        self._error = NO_ANSWER
        self._news = threading.Event()
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._ship, name="mlflow-shipping", daemon=True)
        self._thread.start()

    def log(self, point: MetricPoint) -> None:
        """MetricsLog a point and queue it for shipping."""
        self._points.append(self._metrics_log.append(point))
        self._news.set()

    def log_files(self, paths: Sequence[Path]) -> None:
        """Queue files as artifacts of the run."""
        self._files.extend(paths)
        self._news.set()

    def close(self, status: RunStatus) -> str | None:
        """Ship what has not arrived, for at most `CLOSE_TIMEOUT_S`, and end the MLflow run with `status`.

        Returns:
            What did not arrive in the tracking store and why, or none.
        """
        self._status = status
        self._closing.set()
        self._news.set()
        self._thread.join(CLOSE_TIMEOUT_S)
        self._given_up.set()
        if not self._thread.is_alive():
            return None
        missing = len(self._points) - self._num_sent
        what = f"{missing} of {len(self._points)} points" if missing else "the run's end or its results"
        return f"{what} did not arrive in the tracking store ({self._error})"

    def _ship(self) -> None:
        run: MlflowRun | None = None
        pause_s = FIRST_PAUSE_S
        while not self._given_up.is_set():
            status = self._status  # read first: whatever was logged before the end is shipped before it
            try:
                if run is None:
                    run = MlflowRun(self._identity)
                    run.mark_running()
                self._send(run, status)
            except Exception as error:  # boundary: tracking must never end a run, whatever a store raises
                self._error = f"{type(error).__name__}: {error}".split("\n", 1)[0]
                pause_s = self._pause(pause_s)
                continue
            if status is not None:
                return
            pause_s, self._error = FIRST_PAUSE_S, NO_ANSWER
            self._news.wait()
            self._news.clear()

    def _send(self, run: MlflowRun, status: RunStatus | None) -> None:
        while part := self._points[self._num_sent : self._num_sent + _POINTS_PER_CALL]:
            run.log(part)
            self._num_sent += len(part)
        if status is not None:
            run.end(status)  # before the files: a store may have room for metrics alone
        while part_files := self._files[self._num_files_sent :]:
            run.log_files(part_files)
            self._num_files_sent += len(part_files)

    def _pause(self, pause_s: float) -> float:
        """Wait before the next attempt, less patiently while the run waits for its end; returns the next pause."""
        if self._closing.is_set():
            self._given_up.wait(FIRST_PAUSE_S)
        else:
            self._closing.wait(pause_s)
        return min(2 * pause_s, self._max_pause_s)


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000
