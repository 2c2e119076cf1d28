"""Upload of metrics that were not delivered to the tracking store during the run."""

from ript_ray.config.serialization import read_experiment
from ript_ray.errors import CheckpointError, TrackingError
from ript_ray.runs.run_dir import RunDir
from ript_ray.runs.tracked import artifacts, tracking_identity
from ript_ray.storage.reading import read_object
from ript_ray.tracking.metrics_log import read_metrics
from ript_ray.tracking.mlflow_run import MlflowRun
from ript_ray.tracking.store import Origin
from ript_ray.tracking.tracker import RunStatus


def sync_tracking(folder: RunDir) -> int:
    """Upload a run's metrics and results to the tracking store, which deduplicates them.

    Returns:
        The number of points in the metrics log.

    Raises:
        CheckpointError: `folder` is not a run directory, or its metrics log is of a newer schema.
        RunInUseError: The run is still running.
        TrackingError: The upload failed.
    """
    with folder.lock():
        experiment = read_experiment(folder.config)
        identity = tracking_identity(folder, experiment)
        store = Origin.read(folder.path).store(folder.path, experiment.name)
        points = read_metrics(folder.metrics_log)
        try:
            run = MlflowRun(identity, store)
            run.log(points)
            status = _status_of(folder, run.status)
            if status != run.status:
                run.end(status)
            run.log_files(artifacts(folder))
        except Exception as error:  # boundary: the client library may raise anything
            raise TrackingError(f"uploading to the tracking store failed: {type(error).__name__}: {error}") from error
    return len(points)


def _status_of(folder: RunDir, stored: str) -> str:
    """Final status: with results the one in the run directory, else the one in the store if there is one."""
    has_results = folder.results.exists()
    if stored in set(RunStatus) and not has_results:
        return stored
    try:
        return RunStatus(read_object(folder.status)["status"])
    except (CheckpointError, ValueError, KeyError):  # it could not write its status
        return RunStatus.FINISHED if has_results else RunStatus.KILLED
