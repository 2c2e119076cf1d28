"""A checkpoint is a folder: weights (safetensors), the experiment (JSON) and a manifest of their hashes.

It appears whole or not at all: written under a temporary name, flushed to disk, then renamed.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ript_ray.build import PolicySource
from ript_ray.errors import CheckpointError
from ript_ray.serialization import experiment_from_json, experiment_to_json

SCHEMA = 1
WEIGHTS = "policy.safetensors"
EXPERIMENT = "experiment.json"
MANIFEST = "manifest.json"
FILES = (WEIGHTS, EXPERIMENT)


def save(folder: Path, source: PolicySource) -> None:
    """Write a checkpoint to `folder`, which must not exist.

    Raises:
        CheckpointError: The folder exists, or a weight is not finite.
    """
    if folder.exists():
        raise CheckpointError(f"{folder} exists already; a checkpoint is never overwritten")
    broken = [name for name, array in source.arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise CheckpointError(f"refusing to save weights that are not finite: {', '.join(broken)}")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_file(dict(source.arrays), unfinished / WEIGHTS)
    (unfinished / EXPERIMENT).write_text(experiment_to_json(source.experiment))
    hashes = {name: _sha256(unfinished / name) for name in FILES}
    (unfinished / MANIFEST).write_text(json.dumps({"schema": SCHEMA, "sha256": hashes}, indent=2))
    for path in (*unfinished.iterdir(), unfinished):
        _flush(path)
    unfinished.rename(folder)
    _flush(folder.parent)


def load(folder: Path) -> PolicySource:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: The folder or a file is missing, damaged or foreign; the message names it.
    """
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} is not a checkpoint of ript-ray: it has no {MANIFEST}")
    hashes = _read_manifest(folder / MANIFEST)
    for name in FILES:
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if _sha256(path) != hashes.get(name):
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}")
    try:
        arrays = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    return PolicySource(experiment_from_json(folder / EXPERIMENT), arrays)


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


def _read_manifest(path: Path) -> dict[str, str]:
    try:
        manifest = json.loads(path.read_text())
        schema, hashes = manifest["schema"], dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}") from error
    if schema != SCHEMA:
        raise CheckpointError(f"{path} has schema {schema!r}; this version reads {SCHEMA}")
    return hashes


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
