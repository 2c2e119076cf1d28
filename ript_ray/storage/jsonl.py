"""Append-only text logs that survive crashes (a torn last line is replaced) and full disks (lines are retried)."""

import contextlib
import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

from ript_ray.storage.atomic import atomic_write


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
        """
        self.error: str | None = None
        self._path = path
        self._line_noun = line_noun
        self._unwritten: list[bytes] = []
        self._end = path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0  # end of the last complete line

    def append(self, line: str) -> None:
        """Buffer a line, given without its line break, until `flush`."""
        self._unwritten.append(line.encode() + b"\n")

    def flush(self) -> None:
        """Write all buffered lines. Never raises; a failure sets `error`."""
        lines = b"".join(self._unwritten)
        try:
            with self._path.open("ab", buffering=0) as file:
                # Readers stop at the first torn line, so none may remain in the middle.
                self._end = file.truncate(min(self._end, file.seek(0, os.SEEK_END)))
                _write_all(file, lines)
                os.fsync(file.fileno())  # a checkpoint saved next must not survive a crash that loses these lines
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

    def rewrite(self, lines: Iterable[str]) -> None:
        """Replace the content of an existing file; do nothing if there is none.

        Raises:
            StorageError: The new file cannot be written; the old one is unchanged.
        """
        if self._path.exists():
            content = "".join(f"{line}\n" for line in lines).encode()
            atomic_write(self._path, content)
            self._end = len(content)


def _write_all(file: FileIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:  # a write to a nearly full disk can be partial
        rest = rest[file.write(rest) :]
