"""One run in the store that MLflow's standard environment variable names (a local sqlite file without one)."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ript_ray.tracking.metrics_log import MetricPoint

if TYPE_CHECKING:
    from mlflow.entities import Metric

RUN_ID_TAG = "ript_ray.run_id"

_SETTINGS = {
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what it prints, tracebacks too, would tear the live view; it raises as well
    # MLflow's defaults block for minutes when a server is down.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    # Whoever calls tries again, and looks first: a request whose answer was lost may have created the run.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # it calls a host on the internet, and waits for it at exit
}


@dataclass(frozen=True)
class Identity:
    """What a run is called and how it is described in the store.

    Attributes:
        run_id: The run's own id, the same in every store.
        experiment: Name of the MLflow experiment.
        run: Name of the MLflow run.
        params: The resolved configuration, flat.
        tags: Versions and the like.
    """

    run_id: str
    experiment: str
    run: str
    params: dict[str, str]
    tags: dict[str, str]


class MlflowRun:
    """Writes to the store; every method raises whatever MLflow raises, and may be called again after that.

    Attributes:
        status: How the run stood in the store when it was opened, in MLflow's words.
    """

    def __init__(self, identity: Identity):
        """Go on with the run that carries the identity's id as a tag, or create it."""
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self._client: Any = MlflowClient()
        run = self._find_or_create(identity)
        self._id: str = run.info.run_id
        self.status: str = run.info.status
        known = run.data.params
        self._log_params({name: value for name, value in identity.params.items() if name not in known})

    def mark_running(self) -> None:
        """Say that the run goes on."""
        if self.status != "RUNNING":
            self._client.update_run(self._id, status="RUNNING")

    def log(self, points: Sequence[MetricPoint]) -> None:
        """Write points in as few calls as the store allows; it keeps a point that comes twice only once."""
        metrics = [metric for point in points for metric in _metrics(point)]
        self._client.log_batch(self._id, metrics=metrics, synchronous=True)

    def log_files(self, paths: Iterable[Path]) -> None:
        """Write files as artifacts; a file that comes twice replaces the first."""
        for path in paths:
            self._client.log_artifact(self._id, str(path))

    def end(self, status: str) -> None:
        """Close the run."""
        self._client.set_terminated(self._id, status)

    def _find_or_create(self, identity: Identity) -> Any:
        found = self._client.get_experiment_by_name(identity.experiment)
        experiment = found.experiment_id if found else self._create_experiment(identity.experiment)
        mine = f"tags.`{RUN_ID_TAG}` = '{identity.run_id}'"
        runs = self._client.search_runs(
            [experiment], filter_string=mine, max_results=1, order_by=["attributes.start_time ASC"]
        )
        if runs:
            return runs[0]
        tags = {**identity.tags, RUN_ID_TAG: identity.run_id}
        return self._client.create_run(experiment, run_name=identity.run, tags=tags)

    def _create_experiment(self, name: str) -> Any:
        """Create an experiment; one in an sqlite file keeps its files beside that, not in the present folder."""
        database = self._client.tracking_uri.removeprefix("sqlite:///")
        if database == self._client.tracking_uri:
            return self._client.create_experiment(name)
        files = Path(database).absolute().with_name("mlruns")
        return self._client.create_experiment(name, artifact_location=files.as_uri())

    def _log_params(self, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        missing = [Param(name, value[:6000]) for name, value in params.items()]
        self._client.log_batch(self._id, params=missing, synchronous=True)


def _metrics(point: MetricPoint) -> "list[Metric]":
    """Every metric on the axis of updates; success once more on the axes of environment steps and seconds."""
    from mlflow.entities import Metric

    axes = {"": point.update, "by_env_steps/": point.env_steps, "by_wall_s/": round(point.wall_s)}
    return [
        Metric(axis + name, value, point.timestamp_ms, step)
        for axis, step in axes.items()
        for name, value in point.metrics.items()
        if not axis or "success_rate" in name
    ]
