"""Append-only text logs that survive crashes (a torn last line is replaced) and full disks (lines are retried)."""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable
from io import FileIO
from pathlib import Path
from typing import TypeVar

from ript_ray.storage.atomic import atomic_write, fsync_path, os_errors_as_storage_error
from ript_ray.storage.reading import read_bytes

T = TypeVar("T")

logger = logging.getLogger(__name__)


def parse_lines(path: Path, parse: Callable[[bytes], T]) -> tuple[list[T], list[int]]:
    """Parse every line of a file; a missing file has none.

    Lines that `parse` cannot read (any error of a wrong value or type) are skipped with a warning, except a last line
    without its line break: a crash cut it off.

    Returns:
        What the lines hold, and the numbers, from 1, of those that were skipped with a warning.

    Raises:
        CheckpointError: Something else than a file is at `path`.
    """
    values: list[T] = []
    damaged: list[int] = []
    lines = read_bytes(path).splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            values.append(parse(line))
        except (ValueError, TypeError, AttributeError, KeyError):
            if line.endswith(b"\n"):
                damaged.append(number)
    if damaged:
        logger.warning("%s: cannot read line %s; skipping", path, ", ".join(map(str, damaged)))
    return values, damaged


class AppendOnlyLog:
    """Appends lines to a file; lines that cannot be written are kept in memory and retried, so no line is lost.

    Attributes:
        error: Why the last lines are not written yet, or None.
    """

    def __init__(self, path: Path, line_noun: str):
        """Open the log at `path`; the file is created by the first line.

        Args:
            path: An existing log is continued.
            line_noun: What to call the lines in `error`, plural.

        Raises:
            CheckpointError: Something else than a file is at `path`.
        """
        self.error: str | None = None
        self._path = path
        self._line_noun = line_noun
        self._unwritten: list[bytes] = []
        self._end = read_bytes(path).rfind(b"\n") + 1 if path.exists() else 0  # end of the last complete line

    def append(self, line: str) -> None:
        """Buffer a line, given without its line break, until `flush`."""
        self._unwritten.append(line.encode() + b"\n")

    def flush(self) -> None:
        """Write all buffered lines. Never raises; a failure sets `error`."""
        lines = b"".join(self._unwritten)
        try:
            with self._path.open("ab", buffering=0) as file:
                # A torn line in the middle would damage the next one as well.
                self._end = file.truncate(min(self._end, file.seek(0, os.SEEK_END)))
                _write_all(file, lines)
                os.fsync(file.fileno())  # a checkpoint saved next must not survive a crash that loses these lines
            if self._end == 0:
                fsync_path(self._path.parent)  # nor the file
        except OSError as error:  # boundary: a full disk must not end the run, space may be freed later
            self.error = (
                f"{self._path} cannot be written: {error} (unwritten {self._line_noun}: {len(self._unwritten)})"
            )
            with contextlib.suppress(OSError):  # the next attempt truncates as well
                os.truncate(self._path, self._end)
            return
        self._end += len(lines)
        self._unwritten.clear()
        self.error = None

    def rewrite(self, lines: Iterable[str], *, keep_old: bool = False) -> None:
        """Replace the content of an existing file; do nothing if there is none.

        Args:
            lines: The new content.
            keep_old: Keep a copy of the old file beside it, and say so.

        Raises:
            StorageError: The new file, or the copy, cannot be written; the old one is unchanged.
        """
        if not self._path.exists():
            return
        if keep_old:
            copy = self._path.with_name(f"{self._path.name}.damaged-{time.time_ns()}")
            with os_errors_as_storage_error(copy):
                shutil.copyfile(self._path, copy)
            logger.warning("%s is damaged: it is kept as %s", self._path, copy.name)
        content = "".join(f"{line}\n" for line in lines).encode()
        atomic_write(self._path, content)
        self._end = len(content)


def _write_all(file: FileIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:  # a write to a nearly full disk can be partial
        rest = rest[file.write(rest) :]
