"""A checkpoint is a folder: weights (safetensors), the experiment (JSON) and a manifest of their hashes.

One taken during training also holds the optimiser's moments and where training stood, so that it can go on
as if it had never stopped. A checkpoint appears whole or not at all: written under a temporary name, flushed
to disk, then renamed. No file is ever read by unpickling.
"""

import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ript_ray.build import PolicySource
from ript_ray.errors import CheckpointError, UnwritableError
from ript_ray.files import flush, writing
from ript_ray.serialization import experiment_from_json, experiment_to_json
from ript_ray.types import Arrays, Progress

SCHEMA = 1
WEIGHTS = "policy.safetensors"
EXPERIMENT = "experiment.json"
MANIFEST = "manifest.json"
FILES = (WEIGHTS, EXPERIMENT)
LEARNER = "learner.safetensors"
TRAINING = "training.json"


@dataclass(frozen=True)
class Training:
    """What training needs besides weights and experiment to go on.

    Attributes:
        progress: Where it stood.
        totals: Running sums of the run's figures.
        learner: The optimiser's moments.
    """

    progress: Progress
    totals: dict[str, float]
    learner: Arrays = field(repr=False)


def save(folder: Path, source: PolicySource, training: Training | None = None) -> None:
    """Write a checkpoint to `folder`, which must not exist.

    Args:
        folder: Where it goes.
        source: Experiment and weights.
        training: Present where training can go on from here.

    Raises:
        CheckpointError: The folder exists, or a weight is not finite.
        UnwritableError: The disk does not take it; nothing is left of the attempt.
    """
    if folder.exists():
        raise CheckpointError(f"{folder} exists already; a checkpoint is never overwritten")
    arrays = {**source.arrays, **(training.learner if training else {})}
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise CheckpointError(f"refusing to save weights that are not finite: {', '.join(broken)}")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # a kill leaves it
    try:
        with writing(folder):
            _write(unfinished, source, training)
            unfinished.rename(folder)
            flush(folder.parent)
    except UnwritableError:
        shutil.rmtree(unfinished, ignore_errors=True)  # it would keep the disk full
        raise


def _write(folder: Path, source: PolicySource, training: Training | None) -> None:
    folder.mkdir(parents=True)
    _save_arrays(source.arrays, folder / WEIGHTS)
    (folder / EXPERIMENT).write_text(experiment_to_json(source.experiment))
    if training is not None:
        _save_arrays(training.learner, folder / LEARNER)
        content = {"progress": asdict(training.progress), "totals": training.totals}
        (folder / TRAINING).write_text(json.dumps(content, indent=2, allow_nan=False))
    hashes = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"schema": SCHEMA, "sha256": hashes}, indent=2))
    for path in (*folder.iterdir(), folder):
        flush(path)


def load(folder: Path) -> PolicySource:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: The folder or a file is missing, damaged or foreign; the message names it.
    """
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} is not a checkpoint of ript-ray: it has no {MANIFEST}")
    _verify(folder, FILES)
    return PolicySource(experiment_from_json(folder / EXPERIMENT), _load_arrays(folder / WEIGHTS))


def load_training(folder: Path) -> Training:
    """Read and verify what training needs to go on from a checkpoint; see `load` for errors."""
    if not (folder / TRAINING).is_file():
        return Training(Progress(), {}, {})  # weights alone
    _verify(folder, (LEARNER, TRAINING))
    try:
        content = json.loads((folder / TRAINING).read_text())
        progress, totals = Progress(**content["progress"]), dict(content["totals"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / TRAINING} cannot be read: {error!r}") from error
    return Training(progress, totals, _load_arrays(folder / LEARNER))


def newest_resumable(run: Path) -> tuple[Path, list[str]]:
    """The newest checkpoint of a run that training can go on from.

    Returns:
        The checkpoint, and what is wrong with each newer one that had to be passed over.

    Raises:
        CheckpointError: There is none; what is wrong with each is listed.
    """
    problems: list[str] = []
    for folder in sorted((run / "checkpoints").glob("update-*"), reverse=True):
        try:
            _require_fit(load(folder), folder)
            training = load_training(folder)
            number = int(folder.name.removeprefix("update-"))
            if training.progress.update == number:
                return folder, problems
            problems.append(f"{folder} holds weights alone")
        except (CheckpointError, ValueError, OSError) as error:
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
    saved = sorted((path / "checkpoints").glob("update-*")) if path.is_dir() else []
    if not saved:
        raise CheckpointError(f"{path} is neither a checkpoint nor a run folder with checkpoints")
    return saved[-1]


def set_aside_later(folder: Path) -> None:
    """Set aside the checkpoints of a run that are newer than `folder`: what made them will be done again."""
    for later in folder.parent.glob("update-*"):
        if later.name > folder.name:
            later.rename(later.with_name(f".{later.name}.passed-over-{time.time_ns()}"))


def _require_fit(source: PolicySource, folder: Path) -> None:
    try:
        source()
    except CheckpointError as error:
        raise CheckpointError(f"{folder / WEIGHTS} is foreign: {error}") from error


def _read_manifest(path: Path) -> dict[str, str]:
    try:
        manifest = json.loads(path.read_text())
        schema, hashes = manifest["schema"], dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}") from error
    if schema != SCHEMA:
        raise CheckpointError(f"{path} has schema {schema!r}; this version reads {SCHEMA}")
    return hashes


def _verify(folder: Path, names: tuple[str, ...]) -> None:
    hashes = _read_manifest(folder / MANIFEST)
    for name in names:
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if _sha256(path) != hashes.get(name):
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}")


def _save_arrays(arrays: Arrays, path: Path) -> None:
    try:
        save_file(dict(arrays), path)
    except SafetensorError as error:  # a full disk, among others
        raise OSError(f"{path.name}: {error}") from error


def _load_arrays(path: Path) -> Arrays:
    try:
        return dict(load_file(path))
    except (SafetensorError, TypeError, AttributeError) as error:  # the latter where NumPy lacks the type
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
