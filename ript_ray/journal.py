"""A run's metrics on its own disk, one JSON line per point: the curve, a resumed run and the store are fed from it."""

import contextlib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from io import FileIO
from pathlib import Path

from ript_ray.files import write_whole


@dataclass(frozen=True)
class Point:
    """Metrics at one moment of a run.

    Attributes:
        update: Updates so far.
        env_steps: Environment steps so far.
        wall_s: Seconds since the run began.
        timestamp_ms: Unix time.
        metrics: Name and value.
    """

    update: int
    env_steps: int
    wall_s: float
    timestamp_ms: int
    metrics: dict[str, float]

    @property
    def is_training(self) -> bool:
        """Whether it tells of an update's rollouts; the others tell of a measurement on held-out contexts."""
        return "train/success_rate" in self.metrics


class Journal:
    """Appends points to a file. A disk that takes nothing for a while costs no point and does not stop the run.

    Attributes:
        problem: What is wrong while the last points are not on the disk, else none.
    """

    def __init__(self, path: Path):
        """Go on with the journal at `path`, or begin one with the first point."""
        self.problem: str | None = None
        self._path = path
        self._unwritten: list[bytes] = []
        self._end = path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0  # where the whole lines end

    def append(self, point: Point) -> Point:
        """Write a point, and those before it that the disk has not taken.

        Returns:
            The point as it is written: JSON has no NaN and no infinity, so such a metric is left out.
        """
        finite = {name: value for name, value in point.metrics.items() if math.isfinite(value)}
        point = replace(point, metrics=finite)
        self._unwritten.append(_line_of(point).encode())
        self.flush()
        return point

    def flush(self) -> None:
        """Write what the disk has not taken yet. Never raises: `problem` says where it fails again."""
        lines = b"".join(self._unwritten)
        try:
            with self._path.open("ab", buffering=0) as file:
                # A torn line in the middle would end the journal for whoever reads it.
                self._end = file.truncate(min(self._end, file.seek(0, os.SEEK_END)))
                _write_all(file, lines)
                os.fsync(file.fileno())  # a checkpoint that is saved next must not outlive what led to it
        except OSError as error:  # boundary: a full disk must not end a run that may find it emptied later
            self.problem = f"{self._path} cannot be written: {error} (points it lacks: {len(self._unwritten)})"
            with contextlib.suppress(OSError):  # the next attempt cuts it off, too
                os.truncate(self._path, self._end)
            return
        self._end += len(lines)
        self._unwritten.clear()
        self.problem = None

    def rewind(self, num_updates: int, *, keep_evaluation: bool) -> list[Point]:
        """Drop what will be done again when the run goes on from update `num_updates`.

        Args:
            num_updates: Updates that stay.
            keep_evaluation: Whether a measurement of the weights after `num_updates` stays, too.

        Returns:
            The points that stay.

        Raises:
            UnwritableError: The disk does not take the shorter journal; the longer one is untouched.
        """
        kept = [
            point
            for point in read_journal(self._path)
            if point.update < num_updates or (point.update == num_updates and (point.is_training or keep_evaluation))
        ]
        if self._path.exists():
            self._rewrite(kept)
        return kept

    def _rewrite(self, points: Iterable[Point]) -> None:
        text = "".join(map(_line_of, points))
        write_whole(self._path, text)
        self._end = len(text.encode())


def read_journal(path: Path) -> list[Point]:
    """All points of a journal, up to a line that was cut short; none where there is no journal."""
    points: list[Point] = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            points.append(Point(**json.loads(line)))
        except (ValueError, TypeError):
            break
    return points


def _line_of(point: Point) -> str:
    return json.dumps(asdict(point), allow_nan=False) + "\n"


def _write_all(file: FileIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:  # a disk that is nearly full takes a part
        rest = rest[file.write(rest) :]
