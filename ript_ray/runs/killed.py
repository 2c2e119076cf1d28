"""Runs whose process was killed by force: it could not write how it ended, neither to disk nor to MLflow."""

import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

from ript_ray.errors import RiptError
from ript_ray.runs.run_dir import RunDir
from ript_ray.storage.atomic import atomic_write
from ript_ray.tracking.mlflow_run import find_run, open_client
from ript_ray.tracking.store import SQLITE, Origin
from ript_ray.tracking.tracker import RunStatus

logger = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""Longest time that closing other runs may delay the end of a command."""


def close_killed_run(path: Path) -> bool:
    """Note how the run in a folder ended, on disk and in MLflow, if its process was killed by force.

    Costs a fraction of a millisecond unless there is something to close. A run that a process works on holds its lock.

    Args:
        path: The run's folder.

    Returns:
        Whether it was closed.

    Raises:
        RiptError: The folder cannot be read or written, or has been taken by another process now.
        Exception: Whatever MLflow raises; the next attempt closes the run.
    """
    folder = RunDir(path)
    if folder.status.exists() or not (path / ".lock").exists():
        return False
    with folder.lock():
        if folder.status.exists():  # its process ended in the meantime
            return False
        status = RunStatus.FINISHED if folder.results.exists() else RunStatus.KILLED
        close_in_store(folder, status)
        atomic_write(folder.status, json.dumps({"status": status}) + "\n")
    return True


@contextlib.contextmanager
def closing_killed_runs(runs: Path) -> Iterator[None]:
    """Close the killed runs in a folder of runs in the background while the block runs; nothing is raised."""
    thread = threading.Thread(target=_close_all, args=(runs,), name="close-killed-runs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE_S)


def _close_all(runs: Path) -> None:
    for lock in runs.glob("*/*/.lock"):
        try:
            if close_killed_run(lock.parent):
                logger.info("%s was killed by force; it goes on with ript-ray resume", lock.parent)
        except RiptError:  # in use, or read-only
            continue
        except Exception as error:  # boundary: a store of another run must not disturb this one
            reason = f"{type(error).__name__}: {error}".split("\n", 1)[0]
            logger.debug("%s cannot be closed in MLflow: %s", lock.parent, reason)


def close_in_store(folder: RunDir, status: RunStatus) -> None:
    """End a run in MLflow if it stands there as running; raises whatever MLflow raises."""
    experiment = folder.experiment.name
    origin = Origin.read(folder.path)
    store = origin.store(folder.path, experiment)
    is_missing = store.startswith(SQLITE) and not Path(store.removeprefix(SQLITE)).exists()
    if "mlflow" not in origin.trackers or is_missing:
        return
    client = open_client(store)
    run = find_run(client, experiment, folder.run_id)
    if run is not None and run.info.status == "RUNNING":
        client.set_terminated(run.info.run_id, status)
