"""What `ript-ray evaluate` and `compare` find, as MLflow runs of their own below the run that they look at."""

import logging
import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ript_ray.runs.run_dir import RunDir
from ript_ray.runs.tracked import as_params, name_in_lists, run_of
from ript_ray.tracking.metrics_log import MetricPoint
from ript_ray.tracking.mlflow_run import Identity
from ript_ray.tracking.store import MLFLOW_URI, SQLITE, Origin, without_password
from ript_ray.tracking.tracker import MlflowTracker, RunStatus, now_ms

logger = logging.getLogger(__name__)


def track_evaluation(
    command: str,
    policy: Path,
    *,
    update: int,
    settings: Mapping[str, Any],
    metrics: dict[str, float],
    files: Mapping[str, str],
) -> None:
    """Log an evaluation where the run of its policy is tracked; of a policy without such a run, nothing.

    A store that does not answer delays the end of the command, by 10 s at most, and is named; nothing is raised.

    Args:
        command: evaluate or compare.
        policy: A run or a checkpoint of one.
        update: Updates that the policy had.
        settings: What the command was asked for.
        metrics: What it found.
        files: Texts to keep, by the names of their files.
    """
    folder = run_of(policy.absolute())
    if folder is None or "mlflow" not in Origin.read(folder.path).trackers:
        return
    experiment = folder.experiment.name
    store = Origin.read(folder.path).store(folder.path, experiment)
    if MLFLOW_URI not in os.environ and store.startswith(SQLITE) and not Path(store.removeprefix(SQLITE)).exists():
        return
    tracker = MlflowTracker(_identity(command, folder, experiment, {"policy": policy, **settings}), store)
    tracker.log(MetricPoint(update, 0, 0.0, now_ms(), metrics, "evaluation"))
    with tempfile.TemporaryDirectory() as place:
        paths = [Path(place, name) for name in files]
        for path, text in zip(paths, files.values(), strict=True):
            path.write_text(text)
        tracker.log_files(paths)
        error = tracker.close(RunStatus.FINISHED)
    if error:
        logger.warning("tracking: MLflow, %s: %s", without_password(store), error)


def _identity(command: str, folder: RunDir, experiment: str, settings: Mapping[str, Any]) -> Identity:
    origin = Origin.here()
    return Identity(
        run_id=uuid.uuid4().hex,
        experiment=experiment,
        run=f"{command} {name_in_lists(folder, str(settings['split']))}",
        params=as_params({name: value for name, value in settings.items() if value is not None}),
        tags={
            "folder": str(folder.path),
            "mlflow.user": origin.user,
            "mlflow.source.name": f"ript-ray {command}",
            "mlflow.source.type": "LOCAL",
        },
        parent=(experiment, folder.run_id),
    )
