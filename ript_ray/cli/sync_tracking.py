"""Sending a run that has ended to the tracking store, for what did not arrive while it went on."""

import json

from ript_ray.config.serialization import read_experiment
from ript_ray.errors import TrackingError
from ript_ray.runs.run_dir import RunDir
from ript_ray.runs.run_logger import tracking_identity
from ript_ray.tracking.metrics_log import read_metrics
from ript_ray.tracking.mlflow_run import MlflowRun
from ript_ray.tracking.tracker import RunStatus


def sync_tracking(folder: RunDir) -> int:
    """Send a run's journal and results to the tracking store; returns the number of points in it.

    What has arrived before is not stored twice.

    Raises:
        CheckpointError: The folder is not that of a run.
        RunInUseError: The run is going on.
        TrackingError: The store does not take it.
    """
    with folder.lock():
        identity = tracking_identity(folder, read_experiment(folder.config))
        points = read_metrics(folder.metrics_log)
        try:
            run = MlflowRun(identity)
            run.log(points)
            status = _status_of(folder, run.status)
            if status != run.status:
                run.end(status)
            run.log_files([path for path in (folder.results, folder.curve) if path.exists()])
        except Exception as error:  # boundary: a store raises whatever its client library raises
            raise TrackingError(f"the tracking store does not take the run: {type(error).__name__}: {error}") from error
    return len(points)


def _status_of(folder: RunDir, known: str) -> str:
    """How the run ended: finished where there are results, else what the store knows, else what the run left."""
    if folder.results.exists():
        return RunStatus.FINISHED
    if known in set(RunStatus):
        return known
    try:
        return RunStatus(json.loads(folder.status.read_text())["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return RunStatus.KILLED  # it had no time to say
