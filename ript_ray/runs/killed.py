"""Runs whose process was killed by force: it could not write how it ended, neither to disk nor to MLflow."""

import contextlib
import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from ript_ray.errors import RiptError, StorageError
from ript_ray.runs.overview import run_folders
from ript_ray.runs.run_dir import RunDir, run_of
from ript_ray.storage.reading import read_object
from ript_ray.tracking.mlflow_run import find_run, open_client
from ript_ray.tracking.store import Origin
from ript_ray.tracking.tracker import RunStatus

logger = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""Longest time that closing other runs may delay the end of a command."""


def close_killed_run(path: Path) -> bool:
    """Write how the run in a folder ended, to disk and to MLflow, if its process was killed by force.

    Costs a fraction of a millisecond unless there is something to close. A run that a process works on holds its lock.
    MLflow is told without the lock, for the run may be resumed at once; until it has been told, status.json says so,
    and the next command tries again.

    Args:
        path: The run's folder.

    Returns:
        Whether it was closed.

    Raises:
        RiptError: The folder cannot be read or written, or has been taken by another process now.
        Exception: Whatever MLflow raises.
    """
    folder = RunDir(path)
    if not (path / ".lock").exists() or _is_closed(folder):
        return False
    with folder.lock():
        if not folder.status.exists():  # otherwise its process, or another command, has written it in the meantime
            status = RunStatus.FINISHED if folder.results.exists() else RunStatus.KILLED
            folder.write_status(status, is_tracked=False)
    close_in_store(folder)
    with folder.lock():
        if folder.status.exists():  # otherwise it was resumed, and killed again
            folder.write_status(read_object(folder.status)["status"])
    return True


def close_in_store(folder: RunDir) -> None:
    """Give MLflow the status that a run's folder has, where MLflow believes that the run goes on.

    Raises:
        RiptError: The folder cannot be read.
        Exception: Whatever MLflow raises.
    """
    status = RunStatus(read_object(folder.status)["status"])
    origin, experiment = Origin.read(folder.path), folder.experiment_name
    if "mlflow" not in origin.trackers or not origin.has_store(folder.path, experiment):
        return
    client = open_client(origin.store(folder.path, experiment))
    run = find_run(client, experiment, folder.run_id)
    if run is not None and run.info.status == "RUNNING" and folder.status.exists():  # otherwise resumed by now
        client.set_terminated(run.info.run_id, status)


@contextlib.contextmanager
def closing_killed_runs(root: Path | None) -> Iterator[None]:
    """Close killed runs in the background while the block runs; nothing is raised.

    Args:
        root: Folder of the runs of all experiments, of one experiment, or a run; none to do nothing.
    """
    if root is None:
        yield
        return
    thread = threading.Thread(target=_close_all, args=(root,), name="close-killed-runs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE_S)


def closing_killed_runs_beside(path: Path) -> AbstractContextManager[None]:
    """Close killed runs in the folder that a run, or the run of a checkpoint, lies in; see `closing_killed_runs`."""
    try:
        run = run_of(path.absolute())
        return closing_killed_runs(run.runs_folder if run else None)
    except RiptError:  # damaged: the command itself will say so
        return closing_killed_runs(None)


def _is_closed(folder: RunDir) -> bool:
    """Whether the run's status is on the disk, and MLflow was told."""
    return folder.status.exists() and read_object(folder.status).get("is_tracked", True) is True


def _close_all(root: Path) -> None:
    with contextlib.suppress(OSError):  # the folder is gone
        for path in run_folders(root):
            try:
                if close_killed_run(path):
                    logger.info("%s was killed by force; it goes on with ript-ray resume", path)
            except (RiptError, StorageError):  # in use, damaged, or read-only
                continue
            except Exception as error:  # boundary: a store of another run must not disturb this one
                reason = f"{type(error).__name__}: {error}".split("\n", 1)[0]
                logger.debug("%s cannot be closed in MLflow: %s", path, reason)
