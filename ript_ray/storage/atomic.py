"""Atomic file writes."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ript_ray.errors import StorageError


def require_absent(path: Path) -> None:
    """Check that an output path is free, before the work that produces the output.

    Raises:
        StorageError: `path` exists.
    """
    if path.exists():
        raise StorageError(f"{path} exists already; nothing is overwritten")


@contextlib.contextmanager
def os_errors_as_storage_error(path: Path) -> Iterator[None]:
    """Context manager that re-raises OSError as StorageError naming `path`.

    Raises:
        StorageError: The file cannot be written, e.g. the disk is full or permission is denied.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write atomically (temporary file, fsync, rename).

    Raises:
        StorageError: The file cannot be written; an existing file at `path` is unchanged.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with os_errors_as_storage_error(path):
            with unfinished.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
            fsync_path(path.parent)
    except StorageError:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def make_directory(path: Path) -> None:
    """Create a directory and its missing parents, such that they survive a power cut; it may exist.

    Raises:
        OSError: It cannot be created.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        fsync_path(folder.parent)


def atomic_symlink(link: Path, target: str) -> None:
    """Have a link lead to `target`, in place of where it leads now; raises OSError where it cannot be written."""
    unfinished = link.with_name(f".{link.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    unfinished.symlink_to(target)
    unfinished.replace(link)
    fsync_path(link.parent)


def fsync_path(path: Path) -> None:
    """Call fsync on a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
