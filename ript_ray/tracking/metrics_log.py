"""A run's metrics on its own disk, one JSON line per point: the curve, a resumed run and the store are fed from it."""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ript_ray.storage.jsonl import AppendOnlyLog
from ript_ray.types import RIPT


@dataclass(frozen=True)
class MetricPoint:
    """Metrics at one moment of a run.

    Attributes:
        update: Updates so far; in a supervised stage its optimiser steps.
        env_steps: Environment steps so far.
        wall_s: Seconds since the run began.
        timestamp_ms: Unix time.
        metrics: Name and value.
        stage: What the run was doing.
    """

    update: int
    env_steps: int
    wall_s: float
    timestamp_ms: int
    metrics: dict[str, float]
    stage: str = RIPT

    @property
    def is_update(self) -> bool:
        """Whether it tells of an update's rollouts; others tell of a supervised stage, or of a measurement."""
        return "train/success_rate" in self.metrics

    @property
    def is_evaluation(self) -> bool:
        """Whether it tells of success on held-out contexts."""
        return "eval/success_rate" in self.metrics

    def precedes(self, stage: Stage, number: int, *, keep_evaluation: bool) -> bool:
        """Whether it still holds when a run goes on from `number` updates or steps of a stage."""
        mine = Stage(self.stage)
        if (mine.place, self.update) != (stage.place, number):
            return (mine.place, self.update) < (stage.place, number)
        return not self.is_evaluation or keep_evaluation


class MetricsLog:
    """Appends points to a file. A disk that takes nothing for a while costs no point and does not stop the run."""

    def __init__(self, path: Path):
        """Go on with the journal at `path`, or begin one with the first point."""
        self._path = path
        self._file = AppendOnlyLog(path, "points")

    @property
    def error(self) -> str | None:
        """What is wrong while the last points are not on the disk, else none."""
        return self._file.error

    def append(self, point: MetricPoint) -> MetricPoint:
        """Write a point, and those before it that the disk has not taken.

        Returns:
            The point as it is written: JSON has no NaN and no infinity, so such a metric is left out.
        """
        finite = {name: value for name, value in point.metrics.items() if math.isfinite(value)}
        point = replace(point, metrics=finite)
        self._file.append(_line_of(point))
        self._file.flush()
        return point

    def flush(self) -> None:
        """Write what the disk has not taken yet. Never raises: `error` says where it fails again."""
        self._file.flush()

    def truncate_after(self, stage: Stage, number: int, *, keep_evaluation: bool) -> list[MetricPoint]:
        """Drop what will be done again when the run goes on.

        Args:
            stage: The stage that it goes on in.
            number: Updates of that stage that stay; of a supervised one, optimiser steps.
            keep_evaluation: Whether a measurement of the weights after that stays, too.

        Returns:
            The points that stay.

        Raises:
            StorageError: The disk does not take the shorter journal; the longer one is untouched.
        """
        kept = [
            point
            for point in read_metrics(self._path)
            if point.precedes(stage, number, keep_evaluation=keep_evaluation)
        ]
        self._file.rewrite(map(_line_of, kept))
        return kept


def read_metrics(path: Path) -> list[MetricPoint]:
    """All points of a journal, up to a line that was cut short; none where there is no journal."""
    points: list[MetricPoint] = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            points.append(MetricPoint(**json.loads(line)))
        except (ValueError, TypeError):
            break
    return points


def _line_of(point: MetricPoint) -> str:
    return json.dumps(asdict(point), allow_nan=False)
