"""The metrics of a run as JSON lines in its directory: the source of the curve, of resuming and of MLflow."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import pydantic

from ript_ray.errors import CheckpointError
from ript_ray.storage.jsonl import AppendOnlyLog, parse_lines
from ript_ray.storage.reading import parse_json

METRICS_SCHEMA = 3
"""Version of the line format, written to every line; version 1 has neither a schema nor a kind, 2 no validation."""

PointKind = Literal["update", "evaluation", "validation", "stage"]


@dataclass(frozen=True)
class MetricPoint:
    """Metrics logged at one time.

    Attributes:
        update: Updates so far; in a supervised stage, optimizer steps.
        env_steps: Environment steps so far.
        wall_s: Seconds since the run began.
        timestamp_ms: Unix time.
        metrics: Name and value.
        kind: "update": one RIPT update and its rollouts. "evaluation": success on test contexts. "validation": success
            on validation contexts. "stage": optimizer steps of a supervised stage.
        stage: Name of the training stage.
    """

    update: int
    env_steps: int
    wall_s: pydantic.FiniteFloat
    timestamp_ms: int
    metrics: dict[str, pydantic.FiniteFloat]
    kind: PointKind
    stage: str = "ript"


def over_axes(point: MetricPoint) -> list[tuple[str, int, float]]:
    """Return name, step and value of a point's metrics as trackers show them.

    Every metric over updates; after supervised stages, overall success also over environment steps and seconds.
    """
    axes = {"": point.update}
    if point.kind != "stage":
        axes |= {"by_env_steps/": point.env_steps, "by_wall_s/": round(point.wall_s)}
    return [
        (axis + name, step, value)
        for axis, step in axes.items()
        for name, value in point.metrics.items()
        if not axis or name.endswith("/success_rate")
    ]


_READ = pydantic.TypeAdapter(MetricPoint)


class MetricsLog:
    """Append-only file of points. Points that cannot be written are retried and never stop the run."""

    def __init__(self, path: Path):
        """Open the log at `path`; the file is created by the first point."""
        self._path = path
        self._file = AppendOnlyLog(path, "points")

    @property
    def error(self) -> str | None:
        """Why the last points are not written yet, or None."""
        return self._file.error

    def append(self, point: MetricPoint) -> MetricPoint:
        """Write a point, after earlier ones that are still unwritten.

        Returns:
            The point as written: without metrics that are not finite, which JSON cannot represent.
        """
        finite = {name: value for name, value in point.metrics.items() if math.isfinite(value)}
        point = replace(point, metrics=finite)
        self._file.append(_line_of(point))
        self._file.flush()
        return point

    def flush(self) -> None:
        """Write all unwritten points. Never raises; a failure sets `error`."""
        self._file.flush()

    def truncate_after(
        self,
        stage: str,
        number: int,
        *,
        stages: Sequence[str],
        keep_evaluation: bool,
        before_dropping: Callable[[], None] = lambda: None,
    ) -> list[MetricPoint]:
        """Drop the points that a resumed run will log again.

        Args:
            stage: The stage to resume in.
            number: Updates of that stage to keep; in a supervised stage, optimizer steps.
            stages: Names of the run's stages, in order.
            keep_evaluation: Whether to keep an evaluation at exactly that update.
            before_dropping: Called before a point is dropped, if one is.

        Returns:
            The points that are kept.

        Raises:
            CheckpointError: A point is of a stage that is not in `stages`, or the file is of a newer schema.
            StorageError: The file cannot be written; it is unchanged.
        """
        points, damaged = _read(self._path)
        unknown = sorted({point.stage for point in points}.difference(stages))
        if unknown:
            raise CheckpointError(
                f"{self._path} has points of stage {', '.join(map(repr, unknown))}; "
                f"the stages of this run are {', '.join(stages)}"
            )
        end = (stages.index(stage), number)
        kept = []
        for point in points:
            at = (stages.index(point.stage), point.update)
            if at < end or (at == end and (point.kind != "evaluation" or keep_evaluation)):
                kept.append(point)
        if len(kept) < len(points):
            before_dropping()
        self._file.rewrite(map(_line_of, kept), keep_old=bool(damaged))
        return kept


def read_metrics(path: Path) -> list[MetricPoint]:
    """Read all points; a missing file has none. Lines that cannot be read are skipped with a warning.

    Raises:
        CheckpointError: A line has a newer schema than `METRICS_SCHEMA`.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[list[MetricPoint], list[int]]:
    return parse_lines(path, lambda line: _parse(line, path))


def _line_of(point: MetricPoint) -> str:
    return json.dumps({"schema": METRICS_SCHEMA, **asdict(point)}, allow_nan=False)


def _parse(line: bytes, path: Path) -> MetricPoint:
    content = parse_json(line)
    schema = content.get("schema", 1)
    if schema > METRICS_SCHEMA:
        raise CheckpointError(
            f"{path} was written by a newer version of ript-ray (schema {schema}); "
            f"this one reads up to {METRICS_SCHEMA}"
        )
    known = {field.name: content[field.name] for field in fields(MetricPoint) if field.name in content}
    if schema == 1:
        known["kind"] = _kind_of(known.get("metrics", {}))
    return _READ.validate_json(json.dumps(known), strict=True)


def _kind_of(metrics: dict[str, float]) -> PointKind:
    """Derive the kind of a point of schema 1 from the names of its metrics."""
    if "train/success_rate" in metrics:
        return "update"
    return "evaluation" if "eval/success_rate" in metrics else "stage"
