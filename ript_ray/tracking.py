"""Metrics to a local journal and to MLflow, never on the training path.

The journal is written first and is complete; a background thread ships it. A slow or dead tracking server costs
the training loop nothing: what did not arrive is sent later by `ript-ray sync-tracking`.
"""

import json
import queue
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from ript_ray.mlflow_store import Identity, MlflowRun, Point

CLOSE_TIMEOUT_S = 10.0
"""Longest time that shipping may delay the end of a run."""


class RunStatus(StrEnum):
    """How a run ended, in MLflow's words."""

    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"


class Tracker:
    """Journals points and ships them in the background."""

    def __init__(self, journal: Path, identity: Identity):
        """Start the shipping thread.

        Args:
            journal: Where points are kept, one JSON object per line.
            identity: The run in the store.
        """
        self._problem: str | None = None
        self._journal = journal
        self._identity = identity
        self._queue: queue.Queue[Callable[[MlflowRun], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._ship, name="mlflow-shipping", daemon=True)
        self._thread.start()

    def log(self, point: Point) -> None:
        """Journal a point and queue it for shipping."""
        with self._journal.open("a") as file:
            file.write(json.dumps(vars(point)) + "\n")
        self._queue.put(lambda run: run.log(point))

    def log_files(self, paths: list[Path]) -> None:
        """Queue files as artifacts of the run."""
        self._queue.put(lambda run: run.log_files(paths))

    def close(self, status: RunStatus) -> str | None:
        """Ship what is queued, for at most `CLOSE_TIMEOUT_S`, and end the MLflow run with `status`.

        Returns:
            What went wrong with the tracking store, if anything did; the journal is complete either way.
        """
        self._queue.put(lambda run: run.end(status))
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            return f"the tracking store did not take everything within {CLOSE_TIMEOUT_S:g} s"
        return self._problem

    def _ship(self) -> None:
        try:
            run = MlflowRun(self._identity)
            while (ship := self._queue.get()) is not None:
                ship(run)
        except Exception as error:  # boundary: tracking must never end a run, whatever a store raises
            self._problem = f"the tracking store failed: {type(error).__name__}: {error}".split("\n")[0]


def read_journal(journal: Path) -> list[Point]:
    """All points of a journal, up to a line that was cut short; none where there is no journal."""
    points: list[Point] = []
    for line in journal.read_text().splitlines() if journal.exists() else ():
        try:
            points.append(Point(**json.loads(line)))
        except (ValueError, TypeError):
            break
    return points


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000
