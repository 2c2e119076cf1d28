"""What `ript-ray evaluate` and `compare` find, as MLflow runs of their own below the run that they look at."""

import logging
import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ript_ray.runs import checkpoint
from ript_ray.runs.run_dir import DEMONSTRATIONS, RunDir, run_of
from ript_ray.runs.tracked import as_params, name_in_lists
from ript_ray.tracking.metrics_log import MetricPoint
from ript_ray.tracking.mlflow_run import Identity, MlflowRun
from ript_ray.tracking.store import MLFLOW_URI, Origin, without_password
from ript_ray.tracking.tracker import RunStatus, now_ms

logger = logging.getLogger(__name__)


def track_evaluation(
    command: str,
    policy: Path,
    *,
    settings: Mapping[str, Any],
    metrics: dict[str, float],
    files: Mapping[str, str],
) -> None:
    """Log an evaluation where the run of its policy is tracked; of a policy without such a run, nothing.

    A store that does not answer is named after its first request has timed out; nothing is raised.

    Args:
        command: evaluate or compare.
        policy: A run or a checkpoint of one.
        settings: What the command was asked for.
        metrics: What it found.
        files: Texts to keep, by the names of their files.
    """
    store = ""
    try:
        folder = run_of(policy.absolute())
        if folder is None or "mlflow" not in (origin := Origin.read(folder.path)).trackers:
            return
        experiment = folder.experiment_name
        if MLFLOW_URI not in os.environ and not origin.has_store(folder.path, experiment):
            return
        store = origin.store(folder.path, experiment)
        run = MlflowRun(_identity(command, folder, experiment, {"policy": policy, **settings}), store)
        update = checkpoint.number_of(checkpoint.find(policy).resolve())
        run.log([MetricPoint(update, 0, 0.0, now_ms(), metrics, "evaluation")])
        run.end(RunStatus.FINISHED)
        with tempfile.TemporaryDirectory() as place:
            for name, text in files.items():
                Path(place, name).write_text(text)
            run.log_files(sorted(Path(place).iterdir()))
    except Exception as error:  # boundary: the client library may raise anything, and the figures are printed already
        reason = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        logger.warning("tracking: MLflow, %s, takes nothing (%s)", without_password(store), reason)
    else:
        logger.info("tracking: MLflow, %s, experiment %s", without_password(store), experiment)


def _identity(command: str, folder: RunDir, experiment: str, settings: Mapping[str, Any]) -> Identity:
    origin, changed = Origin.here(), settings.get("benchmark", {}).values()
    return Identity(
        run_id=uuid.uuid4().hex,
        experiment=experiment,
        run=f"{command} {name_in_lists(folder, ' '.join([settings['split'], *changed]))}",
        params=as_params({name: value for name, value in settings.items() if value is not None}),
        tags={
            "folder": str(folder.path),
            DEMONSTRATIONS: folder.demonstrations,
            "mlflow.user": origin.user,
            "mlflow.source.name": f"ript-ray {command}",
            "mlflow.source.type": "LOCAL",
        },
        parent=(experiment, folder.run_id),
    )
