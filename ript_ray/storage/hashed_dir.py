"""Directories written atomically with a manifest of SHA-256 hashes, which is verified on loading.

Nothing is ever unpickled.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes  # noqa: F401 (it teaches NumPy bfloat16, which safetensors then reads)
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ript_ray.errors import CheckpointError, StorageError, first_few
from ript_ray.storage.atomic import fsync_path, make_directory, os_errors_as_storage_error
from ript_ray.storage.reading import read_object, require_regular
from ript_ray.types import Arrays

SCHEMA = 1
MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"
"""How the name of a directory ends that is being written, or was when its process was killed."""


@contextlib.contextmanager
def atomic_directory(folder: Path) -> Iterator[Path]:
    """Context manager that yields a temporary directory; on exit writes its manifest and renames it to `folder`.

    Raises:
        CheckpointError: `folder` exists.
        StorageError: A file cannot be written; the temporary directory is removed.
    """
    if folder.exists():
        raise CheckpointError(f"{folder} exists already; nothing is overwritten")
    unfinished = folder.with_name(f".{folder.name}{UNFINISHED}")
    shutil.rmtree(unfinished, ignore_errors=True)  # left over from a killed process
    try:
        with os_errors_as_storage_error(folder):
            make_directory(folder.parent)
            unfinished.mkdir()
            yield unfinished
            _write_manifest(unfinished)
            unfinished.rename(folder)
            fsync_path(folder.parent)
    except StorageError:
        shutil.rmtree(unfinished, ignore_errors=True)  # otherwise it would keep the disk full
        raise


def _write_manifest(folder: Path) -> None:
    hashes = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"schema": SCHEMA, "sha256": hashes}, indent=2))
    for path in (*folder.iterdir(), folder):
        fsync_path(path)


def verify_manifest(folder: Path, names: tuple[str, ...]) -> None:
    """Check that the named files exist and match the hashes in the manifest.

    Raises:
        CheckpointError: The manifest is unreadable or of another schema, or a file is missing or corrupt; the message
            names it.
    """
    hashes = _read_manifest(folder / MANIFEST)
    for name in names:
        path = folder / name
        require_regular(path)
        if sha256_of(path) != hashes.get(name):
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}")


def _read_manifest(path: Path) -> dict[str, str]:
    manifest = read_object(path)
    try:
        schema, hashes = manifest["schema"], dict(manifest["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}") from error
    if schema != SCHEMA:
        raise CheckpointError(f"{path} has schema {schema!r}; this version reads {SCHEMA}")
    return hashes


def require_finite(arrays: Arrays) -> None:
    """Check weights before saving.

    Raises:
        CheckpointError: Some arrays are not finite; the message names them.
    """
    if broken := _not_finite(arrays):
        raise CheckpointError(f"refusing to save weights that are not finite: {broken}")


def _not_finite(arrays: Arrays) -> str:
    return ", ".join(first_few([name for name, array in arrays.items() if not np.isfinite(array).all()]))


def save_arrays(arrays: Arrays, path: Path) -> None:
    """Write named arrays as safetensors.

    Raises:
        OSError: The file cannot be written.
    """
    try:
        save_file(dict(arrays), path)
    except SafetensorError as error:  # e.g. a full disk
        raise OSError(f"{path.name}: {error}") from error


def load_arrays(path: Path) -> Arrays:
    """Read named arrays from safetensors.

    Raises:
        CheckpointError: The file is missing or not valid, has a dtype that NumPy lacks, or values that are not finite.
    """
    require_regular(path)
    try:
        arrays: Arrays = load_file(path)
    except (OSError, SafetensorError, TypeError, AttributeError) as error:  # the last two: a dtype that NumPy lacks
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if broken := _not_finite(arrays):
        raise CheckpointError(f"{path} has values that are not finite: {broken}")
    return arrays


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
