"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ript_ray.errors import StorageError


def require_absent(path: Path) -> None:
    """Check, before work is done, that what comes of it will not overwrite anything.

    Raises:
        StorageError: There is something at `path`.
    """
    if path.exists():
        raise StorageError(f"{path} exists already; nothing is overwritten")


@contextlib.contextmanager
def os_errors_as_storage_error(path: Path) -> Iterator[None]:
    """Around what writes `path`: turns a disk that does not take it into an error that names it.

    Raises:
        StorageError: The disk is full, or writing there is not allowed.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write content under a temporary name, flush it to disk, then give it its name: a kill leaves the old or the new.

    Raises:
        StorageError: The disk does not take it; what was at `path` is untouched.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with os_errors_as_storage_error(path):
            with unfinished.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
            flush(path.parent)
    except StorageError:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
