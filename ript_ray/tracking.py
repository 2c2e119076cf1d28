"""Metrics to a local journal and to MLflow, never on the training path.

The journal is written first and is complete; a background thread ships it, one call per update, to the store
that MLflow's standard environment variable names (a local sqlite file without one). A slow or dead tracking
server costs the training loop nothing.
"""

import json
import os
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.entities import Metric

CLOSE_TIMEOUT_S = 10.0
"""Longest time that shipping may delay the end of a run."""

_MLFLOW_SETTINGS = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # its first words about a new store would tear the live view
    # MLflow's defaults block for minutes when a server is down.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
}


class RunStatus(StrEnum):
    """How a run ended, in MLflow's words."""

    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"


@dataclass(frozen=True)
class Point:
    """Metrics at one moment of a run.

    Attributes:
        update: Updates so far.
        env_steps: Environment steps so far.
        wall_s: Seconds since the run began.
        timestamp_ms: Unix time.
        metrics: Name and value.
    """

    update: int
    env_steps: int
    wall_s: float
    timestamp_ms: int
    metrics: dict[str, float]


class Tracker:
    """Journals points and ships them in the background."""

    def __init__(self, journal: Path, *, experiment: str, run: str, params: Mapping[str, str], tags: Mapping[str, str]):
        """Start the shipping thread.

        Args:
            journal: Where points are kept, one JSON object per line. Beside it lies the MLflow run's id;
                where there is one already, that run is continued.
            experiment: Name of the MLflow experiment.
            run: Name of the MLflow run.
            params: The resolved configuration, flat.
            tags: Tags of the MLflow run.
        """
        self.problem: str | None = None
        self._journal = journal
        self._run_id_file = journal.with_name("mlflow-run-id")
        self._names = (experiment, run)
        self._params = dict(params)
        self._tags = dict(tags)
        self._queue: queue.Queue[Point | list[Path] | RunStatus] = queue.Queue()
        self._thread = threading.Thread(target=self._ship, name="mlflow-shipping", daemon=True)
        self._thread.start()

    def log(self, point: Point) -> None:
        """Journal a point and queue it for shipping."""
        with self._journal.open("a") as file:
            file.write(json.dumps(vars(point)) + "\n")
        self._queue.put(point)

    def log_files(self, paths: list[Path]) -> None:
        """Queue files as artifacts of the run."""
        self._queue.put(paths)

    def close(self, status: RunStatus) -> str | None:
        """Ship what is queued, for at most `CLOSE_TIMEOUT_S`, and end the MLflow run with `status`.

        Returns:
            What went wrong with the tracking store, if anything did; the journal is complete either way.
        """
        self._queue.put(status)
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            return f"the tracking store did not take everything within {CLOSE_TIMEOUT_S:g} s"
        return self.problem

    def _ship(self) -> None:
        try:
            self._ship_all()
        except Exception as error:  # boundary: tracking must never end a run, whatever a store raises
            self.problem = f"the tracking store failed: {type(error).__name__}: {error}".split("\n")[0]

    def _ship_all(self) -> None:
        for name, value in _MLFLOW_SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        client = MlflowClient()
        experiment, run = self._names
        found = client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else client.create_experiment(experiment)
        if self._run_id_file.exists():
            run_id = self._run_id_file.read_text()
            client.update_run(run_id, status="RUNNING")
        else:
            run_id = client.create_run(experiment_id, run_name=run, tags=self._tags).info.run_id
            client.log_batch(run_id, params=[Param(name, value[:6000]) for name, value in self._params.items()])
            self._run_id_file.write_text(run_id)
        while not isinstance(item := self._queue.get(), RunStatus):
            if isinstance(item, Point):
                client.log_batch(run_id, metrics=_mlflow_metrics(item))
                continue
            for path in item:
                client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, item)


def _mlflow_metrics(point: Point) -> "list[Metric]":
    """Every metric on the axis of updates; success once more on the axes of environment steps and seconds."""
    from mlflow.entities import Metric

    axes = {"": point.update, "by_env_steps/": point.env_steps, "by_wall_s/": round(point.wall_s)}
    return [
        Metric(axis + name, value, point.timestamp_ms, step)
        for axis, step in axes.items()
        for name, value in point.metrics.items()
        if not axis or "success_rate" in name
    ]


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000
