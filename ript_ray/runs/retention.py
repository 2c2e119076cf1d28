"""What a run takes of the disk, and what it deletes again: older checkpoints, and older versions of the weights."""

import logging
import shutil
from pathlib import Path

from ript_ray.config.experiment import Experiment, Kept
from ript_ray.runs import checkpoint
from ript_ray.runs.run_dir import POST_TRAINING_PREFIX, RunDir
from ript_ray.types import RIPT

SUPERFLUOUS = ".superfluous"
"""How the name of a checkpoint ends that is being deleted, or was when its process was killed."""

logger = logging.getLogger(__name__)


def prune_checkpoints(run: RunDir, keep: Kept) -> None:
    """Delete the checkpoints of post-training but the newest `keep`, that of update 0, and the one that is best.

    Called when a newer one is complete. Never raises: what cannot be deleted now is deleted the next time.
    """
    for folder in run.best.parent.glob(f".*{SUPERFLUOUS}"):
        shutil.rmtree(folder, ignore_errors=True)  # its process was killed
    saved = [path for path in checkpoint.saved_in(run.path) if path.name.startswith(f"{POST_TRAINING_PREFIX}-")]
    best = run.best.resolve().name
    for folder in _all_but_newest(saved, keep):
        if checkpoint.number_of(folder) > 0 and folder.name != best:
            delete_checkpoint(folder)


def delete_checkpoint(folder: Path) -> None:
    """Delete a checkpoint: to every reader it is there whole or not at all. Never raises."""
    superfluous = folder.with_name(f".{folder.name}{SUPERFLUOUS}")
    try:
        folder.rename(superfluous)
    except OSError as error:
        logger.warning("%s cannot be deleted: %s", folder, error)
        return
    shutil.rmtree(superfluous, ignore_errors=True)


def prune_weights(files: list[Path], keep: Kept) -> None:
    """Delete the weights of all versions but the newest `keep`, given in any order. Never raises."""
    for path in _all_but_newest(sorted(files), keep):
        try:
            path.unlink()
        except OSError as error:
            logger.warning("%s cannot be deleted: %s", path, error)


def size_bytes(folder: Path) -> int:
    """Return the size of all files below a folder; what vanishes meanwhile does not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if not path.is_dir() else 0
        except OSError:
            continue
    return total


def expected_bytes(experiment: Experiment, policy_bytes: int) -> int:
    """Return the disk space that a run takes at most, but for the groups kept between two checkpoints.

    A checkpoint holds the policy and two moments of each trained parameter; a version of the weights is at most all of
    the policy. One checkpoint more than are kept is there for a moment.

    Args:
        experiment: What is learned.
        policy_bytes: Size of the policy's arrays.
    """
    num_checkpoints = len(experiment.supervised_tasks) + 1
    num_versions = 0
    if RIPT in experiment.stages:
        most = -(-experiment.num_updates // experiment.checkpoint_every)
        num_checkpoints += 1 + min(most, most if experiment.keep_checkpoints == "all" else experiment.keep_checkpoints)
        num_checkpoints += experiment.evaluation.every is not None  # the best one
        if experiment.keep_weights:
            versions = experiment.num_updates if experiment.keep_versions == "all" else experiment.keep_versions
            num_versions = min(versions, experiment.num_updates)
    return policy_bytes * (3 * num_checkpoints + num_versions)


def _all_but_newest(oldest_first: list[Path], keep: Kept) -> list[Path]:
    return [] if keep == "all" else oldest_first[:-keep]
