"""One run in an MLflow store."""

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ript_ray.tracking.metrics_log import MetricPoint, over_axes
from ript_ray.tracking.store import artifact_location, follow_a_move

RUN_ID_TAG = "ript_ray.run_id"
PARENT_TAG = "mlflow.parentRunId"
SEEDS_TAG = "experiment_sha256"
"""The same for runs that differ in their seeds alone."""

TRAINING_KIND = ("mlflow.experimentKind", "custom_model_development")
"""Without this tag, MLflow's interface takes an experiment for one of chatbots and opens at their traces."""

MAX_CHARS = 6000
"""Longest value of a parameter in MLflow."""

_SETTINGS = {
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # its log output would corrupt the live view; errors are raised anyway
    # MLflow's defaults block for minutes when a server is down.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    # The caller retries, and looks the run up first: a request whose response was lost may have created it.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # it contacts a host on the internet and waits for it at exit
}


def open_client(store: str) -> Any:
    """Return a client of the store at a URI, which answers soon or raises."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    follow_a_move(store)
    return MlflowClient(store)


def find_run(client: Any, experiment: str, run_id: str) -> Any:
    """Return the run with an id of ours, or None if there is none."""
    found = client.get_experiment_by_name(experiment)
    runs = found and client.search_runs(
        [found.experiment_id],
        filter_string=f"tags.`{RUN_ID_TAG}` = '{run_id}'",
        max_results=1,
        order_by=["attributes.start_time ASC"],
    )
    return runs[0] if runs else None


@dataclass(frozen=True)
class Identity:
    """Name and description of a run in the tracking store.

    Attributes:
        run_id: The run's own id, the same in every store.
        experiment: Name of the MLflow experiment.
        run: Name of the MLflow run.
        params: The resolved configuration and the cluster, flattened.
        tags: Versions, commit, machine, directory; those of a run that is continued are updated.
        parent: MLflow experiment and id of the run that this one is shown below, if any.
        replaced: Ids that the run had before updates of it were dropped, to be made again.
        group: What its name shares with those of runs that differ in their seeds alone.
        started_ms: Unix time of its start, which may be long before the store answers; now, unless given.
    """

    run_id: str
    experiment: str
    run: str
    params: dict[str, str]
    tags: dict[str, str]
    parent: tuple[str, str] | None = None
    replaced: tuple[str, ...] = ()
    group: str = ""
    started_ms: int | None = None


class MlflowRun:
    """Writes to the tracking store. Methods raise whatever MLflow raises and can be retried.

    Attributes:
        status: MLflow's status of the run when it was opened.
    """

    def __init__(self, identity: Identity, store: str):
        """Open the run tagged with the identity's id, or create it in place of those that it replaces.

        MLflow cannot take a metric back: of a run that was interrupted, updates that are made again would stand there
        twice. So their run goes to MLflow's trash, and all points are logged to a new one.
        """
        self._client, self._store = open_client(store), store
        run = self._find_or_create(identity)
        self._id: str = run.info.run_id
        self.status: str = run.info.status
        self._describe(identity, known_params=run.data.params, known_tags=run.data.tags)

    def mark_running(self) -> None:
        """Set the status to running."""
        if self.status != "RUNNING":
            self._client.update_run(self._id, status="RUNNING")

    def log(self, points: Sequence[MetricPoint]) -> None:
        """Log points in as few calls as possible; the store deduplicates points that are logged twice."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, point.timestamp_ms, step) for point in points for name, step, value in over_axes(point)
        ]
        self._client.log_batch(self._id, metrics=metrics, synchronous=True)

    def log_files(self, paths: Iterable[Path]) -> None:
        """Log files as artifacts; a file that is logged again is replaced."""
        for path in paths:
            self._client.log_artifact(self._id, str(path))

    def end(self, status: str) -> None:
        """End the run with an MLflow status."""
        self._client.set_terminated(self._id, status)

    def _find_or_create(self, identity: Identity) -> Any:
        from mlflow.exceptions import MlflowException

        for replaced in identity.replaced:
            if run := find_run(self._client, identity.experiment, replaced):
                with contextlib.suppress(MlflowException):  # a store may not allow it: the run stays beside the new one
                    self._client.delete_run(run.info.run_id)
        if run := find_run(self._client, identity.experiment, identity.run_id):
            return run
        tags = {**identity.tags, RUN_ID_TAG: identity.run_id}
        if identity.parent is not None and (parent := find_run(self._client, *identity.parent)):
            tags[PARENT_TAG] = parent.info.run_id
        experiment = self._experiment(identity.experiment)
        run = self._client.create_run(experiment, identity.started_ms, run_name=identity.run, tags=tags)
        if PARENT_TAG not in tags and SEEDS_TAG in tags:
            self._nest_seeds(experiment, identity)
        return run

    def _nest_seeds(self, experiment: str, identity: Identity) -> None:
        """Nest runs that differ in their seeds alone below a run of their own, once there are two."""
        own_id = identity.tags[SEEDS_TAG]
        runs = self._client.search_runs([experiment], filter_string=f"tags.{SEEDS_TAG} = '{own_id}'")
        alone = [run for run in runs if PARENT_TAG not in run.data.tags]
        if len(runs) < 2 or not alone:
            return
        parent = find_run(self._client, identity.experiment, own_id)
        if parent is None:
            name, tags = f"{identity.group} all seeds", {RUN_ID_TAG: own_id}
            parent = self._client.create_run(experiment, run_name=name, tags=tags)
            self._client.set_terminated(parent.info.run_id)
        for run in alone:
            self._client.set_tag(run.info.run_id, PARENT_TAG, parent.info.run_id)

    def _experiment(self, name: str) -> str:
        """Return the id of the experiment, marked as one of training; it is created if need be."""
        key, kind = TRAINING_KIND
        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = artifact_location(self._store)
            return str(self._client.create_experiment(name, artifact_location=location, tags={key: kind}))
        if key not in found.tags:
            self._client.set_experiment_tag(found.experiment_id, key, kind)
        return str(found.experiment_id)

    def _describe(self, identity: Identity, *, known_params: Mapping[str, str], known_tags: Mapping[str, str]) -> None:
        """Log the parameters that are not there yet, those too long for MLflow in parts, and the tags that changed."""
        from mlflow.entities import Param, RunTag

        parts = {
            f"{name}.part{start // MAX_CHARS + 1}" if start else name: value[start : start + MAX_CHARS]
            for name, value in identity.params.items()
            for start in range(0, max(1, len(value)), MAX_CHARS)
        }
        params = [Param(name, value) for name, value in parts.items() if name not in known_params]
        tags = [RunTag(name, value) for name, value in identity.tags.items() if known_tags.get(name) != value]
        self._client.log_batch(self._id, params=params, tags=tags, synchronous=True)
