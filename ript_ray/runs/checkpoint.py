"""A checkpoint is a folder: weights (safetensors), the experiment (JSON) and a manifest of their hashes.

One taken during training also holds the optimiser's moments and where training stood, so that it can go on
as if it had never stopped. A checkpoint appears whole or not at all: written under a temporary name, flushed
to disk, then renamed. No file is ever read by unpickling.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from ript_ray.config.serialization import experiment_from_json, experiment_to_json, from_json, to_json
from ript_ray.errors import CheckpointError
from ript_ray.runs.run_dir import CHECKPOINT_PREFIXES, checkpoint_name
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.storage.hashed_dir import (
    MANIFEST,
    atomic_directory,
    load_arrays,
    require_finite,
    save_arrays,
    verify_manifest,
)
from ript_ray.types import Arrays, Progress, Stage

WEIGHTS = "policy.safetensors"
EXPERIMENT = "experiment.json"
FILES = (WEIGHTS, EXPERIMENT)
LEARNER = "learner.safetensors"
TRAINING = "training.json"


@dataclass(frozen=True)
class TrainingState:
    """What training needs besides weights and experiment to go on.

    Attributes:
        progress: Where post-training stood.
        totals: Running sums of the run's figures.
        learner: The optimiser's moments; in a supervised stage also the state of torch's generator.
        stage: The stage that goes on.
        step: Optimiser steps of a supervised stage so far.
    """

    progress: Progress
    totals: dict[str, float]
    learner: Arrays = field(repr=False)
    stage: Stage = Stage.RIPT
    step: int = 0

    @property
    def number(self) -> int:
        """Updates of the stage so far; of a supervised one, optimiser steps."""
        return self.progress.update if self.stage is Stage.RIPT else self.step


@dataclass(frozen=True)
class _Standing:
    """What `training.json` holds."""

    stage: Stage
    step: int
    progress: Progress
    totals: dict[str, float]


def save(folder: Path, source: SavedPolicy, training: TrainingState | None = None) -> None:
    """Write a checkpoint to `folder`, which must not exist.

    Args:
        folder: Where it goes.
        source: Experiment and weights.
        training: Present where training can go on from here.

    Raises:
        CheckpointError: The folder exists, or a weight is not finite.
        StorageError: The disk does not take it; nothing is left of the attempt.
    """
    require_finite({**source.arrays, **(training.learner if training else {})})
    with atomic_directory(folder) as unfinished:
        save_arrays(source.arrays, unfinished / WEIGHTS)
        (unfinished / EXPERIMENT).write_text(experiment_to_json(source.experiment))
        if training is not None:
            save_arrays(training.learner, unfinished / LEARNER)
            (unfinished / TRAINING).write_text(to_json(_standing_of(training)))


def load(folder: Path) -> SavedPolicy:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: The folder or a file is missing, damaged or foreign; the message names it.
    """
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} is not a checkpoint of ript-ray: it has no {MANIFEST}")
    verify_manifest(folder, FILES)
    return SavedPolicy(experiment_from_json(folder / EXPERIMENT), load_arrays(folder / WEIGHTS))


def load_training(folder: Path) -> TrainingState:
    """Read and verify what training needs to go on from a checkpoint; see `load` for errors."""
    if not (folder / TRAINING).is_file():
        return TrainingState(Progress(), {}, {})  # weights alone
    verify_manifest(folder, (LEARNER, TRAINING))
    standing = from_json(folder / TRAINING, _Standing, "where training stood")
    arrays = load_arrays(folder / LEARNER)
    return TrainingState(standing.progress, standing.totals, arrays, standing.stage, standing.step)


def _standing_of(training: TrainingState) -> _Standing:
    return _Standing(training.stage, training.step, training.progress, training.totals)


def saved_in(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first: those of each stage by their number."""
    stages = {prefix: stage.place for stage, prefix in CHECKPOINT_PREFIXES.items()}
    found = []
    for folder in (run / "checkpoints").glob("[!.]*-*"):
        prefix, _, number = folder.name.rpartition("-")
        if prefix in stages and number.isdecimal():
            found.append((stages[prefix], number_of(folder), folder))
    return [folder for *_, folder in sorted(found)]


def number_of(folder: Path) -> int:
    """Updates, or optimiser steps, that a checkpoint's name counts."""
    return int(folder.name.rpartition("-")[2])


def latest_valid(run: Path) -> tuple[Path, list[str]]:
    """The newest checkpoint of a run that training can go on from.

    Returns:
        The checkpoint, and what is wrong with each newer one that had to be passed over.

    Raises:
        CheckpointError: There is none; what is wrong with each is listed.
    """
    problems: list[str] = []
    for folder in reversed(saved_in(run)):
        try:
            _require_fit(load(folder), folder)
            training = load_training(folder)
            if folder.name == checkpoint_name(training.number, training.stage):
                return folder, problems
            problems.append(f"{folder} holds weights alone")
        except (CheckpointError, OSError) as error:
            problems.append(str(error))
    raise CheckpointError("\n  ".join([f"{run} has no checkpoint to go on from", *problems]))


def find(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the newest one of a run folder.

    Raises:
        CheckpointError: There is nothing at `path`, or it is neither a run nor a checkpoint.
    """
    if not path.exists():
        raise CheckpointError(f"there is nothing at {path}")
    if (path / MANIFEST).is_file():
        return path
    saved = saved_in(path)
    if not saved:
        raise CheckpointError(f"{path} is neither a checkpoint nor a run folder with checkpoints")
    return saved[-1]


def quarantine_newer(folder: Path) -> None:
    """Set aside the checkpoints of a run that are newer than `folder`: what made them will be done again."""
    saved = saved_in(folder.parent.parent)
    for later in saved[saved.index(folder) + 1 :]:
        later.rename(later.with_name(f".{later.name}.passed-over-{time.time_ns()}"))


def _require_fit(source: SavedPolicy, folder: Path) -> None:
    try:
        source()
    except CheckpointError as error:
        raise CheckpointError(f"{folder / WEIGHTS} is foreign: {error}") from error
