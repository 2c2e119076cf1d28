"""A file that grows by whole lines: a torn last line is replaced, what a full disk does not take comes later."""

import contextlib
import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

from ript_ray.storage.atomic import atomic_write


class AppendOnlyLog:
    """Appends lines to a file. A disk that takes nothing for a while costs no line and does not stop the run.

    Attributes:
        problem: What is wrong while the last lines are not on the disk, else none.
    """

    def __init__(self, path: Path, line_noun: str):
        """Go on with the file at `path`, or begin one with the first line.

        Args:
            path: The file.
            line_noun: What its lines are called in `error`.
        """
        self.error: str | None = None
        self._path = path
        self._name_of_lines = line_noun
        self._unwritten: list[bytes] = []
        self._end = path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0  # where the whole lines end

    def append(self, line: str) -> None:
        """Keep a line, without its line break, until `flush`."""
        self._unwritten.append(line.encode() + b"\n")

    def flush(self) -> None:
        """Write what the disk has not taken yet. Never raises: `error` says where it fails again."""
        lines = b"".join(self._unwritten)
        try:
            with self._path.open("ab", buffering=0) as file:
                # A torn line in the middle would end the file for whoever reads it.
                self._end = file.truncate(min(self._end, file.seek(0, os.SEEK_END)))
                _write_all(file, lines)
                os.fsync(file.fileno())  # a checkpoint that is saved next must not outlive what led to it
        except OSError as error:  # boundary: a full disk must not end a run that may find it emptied later
            lacking = f"({self._name_of_lines} it lacks: {len(self._unwritten)})"
            self.error = f"{self._path} cannot be written: {error} {lacking}"
            with contextlib.suppress(OSError):  # the next attempt cuts it off, too
                os.truncate(self._path, self._end)
            return
        self._end += len(lines)
        self._unwritten.clear()
        self.error = None

    def rewrite(self, lines: Iterable[str]) -> None:
        """Replace the whole file, if there is one.

        Raises:
            StorageError: The disk does not take the new one; the old one is untouched.
        """
        if self._path.exists():
            content = "".join(f"{line}\n" for line in lines).encode()
            atomic_write(self._path, content)
            self._end = len(content)


def _write_all(file: FileIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:  # a disk that is nearly full takes a part
        rest = rest[file.write(rest) :]
