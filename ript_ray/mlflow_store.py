"""One run in the store that MLflow's standard environment variable names (a local sqlite file without one)."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ript_ray.files import write_whole

if TYPE_CHECKING:
    from mlflow.entities import Metric

_SETTINGS = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # its first words about a new store would tear the live view
    # MLflow's defaults block for minutes when a server is down.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
}


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


@dataclass(frozen=True)
class Identity:
    """What a run is called and how it is described in the store.

    Attributes:
        experiment: Name of the MLflow experiment.
        run: Name of the MLflow run.
        params: The resolved configuration, flat.
        tags: Versions and the like.
        id_file: Where the run's id in the store is kept, so that a later process continues the same run.
    """

    experiment: str
    run: str
    params: dict[str, str]
    tags: dict[str, str]
    id_file: Path


class MlflowRun:
    """Writes to the store; every method raises whatever MLflow raises."""

    def __init__(self, identity: Identity):
        """Create the run, or go on with the one whose id lies in `identity.id_file`."""
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client: Any = MlflowClient()
        if identity.id_file.exists():
            self._id = identity.id_file.read_text()
            self._client.update_run(self._id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(identity.experiment)
        experiment_id = found.experiment_id if found else self._client.create_experiment(identity.experiment)
        self._id = self._client.create_run(experiment_id, run_name=identity.run, tags=identity.tags).info.run_id
        write_whole(identity.id_file, self._id)
        params = [Param(name, value[:6000]) for name, value in identity.params.items()]
        self._client.log_batch(self._id, params=params)

    def log(self, point: Point) -> None:
        """Write a point in one call; the store keeps a point that comes twice only once."""
        self._client.log_batch(self._id, metrics=_metrics(point))

    def log_files(self, paths: Iterable[Path]) -> None:
        """Write files as artifacts."""
        for path in paths:
            self._client.log_artifact(self._id, str(path))

    def end(self, status: str) -> None:
        """Close the run."""
        self._client.set_terminated(self._id, status)


def _metrics(point: Point) -> "list[Metric]":
    """Every metric on the axis of updates; success once more on the axes of environment steps and seconds."""
    from mlflow.entities import Metric

    axes = {"": point.update, "by_env_steps/": point.env_steps, "by_wall_s/": round(point.wall_s)}
    return [
        Metric(axis + name, value, point.timestamp_ms, step)
        for axis, step in axes.items()
        for name, value in point.metrics.items()
        if not axis or "success_rate" in name
    ]
