"""The runs below a folder and how they stand, from their files alone: damaged ones, and those of plugins, too."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from ript_ray.config.changes import in_words
from ript_ray.errors import CheckpointError
from ript_ray.runs.run_dir import SCRIPTED, RunDir
from ript_ray.storage.jsonl import parse_lines
from ript_ray.storage.reading import parse_json, read_object
from ript_ray.types import RIPT

MARKS = ("config.json", "run-id", "versions.json", ".lock", "checkpoints")
"""A folder that holds one of these is a run."""


class RunState(StrEnum):
    """How a run stands. All but the first two can be resumed, or say why not."""

    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    DAMAGED = "damaged"


@dataclass(frozen=True)
class RunOverview:
    """One run.

    Attributes:
        folder: Its directory.
        state: How it stands.
        detail: How far it is, unless it has finished; what is wrong, if it is damaged.
        changed: What its options changed of the experiment's file; empty if nothing, or if that is not known.
        before: Success on held-out contexts before post-training, if known.
        after: Success at the end, if known.
        num_rollouts: Rollouts of post-training so far.
        env_steps: Environment steps of post-training so far.
        wall_s: Seconds so far, over all processes that worked on it.
        demonstrations: Who performs the demonstrations behind its policy.
    """

    folder: Path
    state: RunState
    detail: str = ""
    changed: str = ""
    before: float | None = None
    after: float | None = None
    num_rollouts: int = 0
    env_steps: int = 0
    wall_s: float = 0.0
    demonstrations: str = "unknown"

    @property
    def is_scripted(self) -> bool:
        """Whether its policy learned from scripted demonstrations."""
        return self.demonstrations == SCRIPTED

    @property
    def gain(self) -> float | None:
        """Success at the end less success before post-training, if both are known."""
        return None if self.before is None or self.after is None else self.after - self.before


def overview(root: Path) -> list[RunOverview]:
    """Return the runs of a folder: of all experiments, of one, or that one run; by experiment, oldest first.

    Raises:
        CheckpointError: There is no such folder.
    """
    if not root.is_dir():
        raise CheckpointError(f"there is no folder {root}")
    return [_read(RunDir(folder)) for folder in run_folders(root)]


def run_folders(root: Path) -> list[Path]:
    """Return the folders of runs below a folder: of all experiments, of one, or that one run; oldest first."""
    folders = [root, *sorted(root.glob("*/")), *sorted(root.glob("*/*/"))]
    return [folder for folder in folders if not folder.is_symlink() and any((folder / mark).exists() for mark in MARKS)]


def _read(run: RunDir) -> RunOverview:
    try:
        return _read_sound(run)
    except (OSError, CheckpointError, ValueError, KeyError, TypeError, AttributeError) as error:  # boundary: a row each
        what = str(error) if isinstance(error, (OSError, CheckpointError)) else repr(error)
        what = what.removeprefix(f"{run.path}/")
        return RunOverview(run.path, RunState.DAMAGED, what)


def _read_sound(run: RunDir) -> RunOverview:
    config = read_object(run.config)
    results, before, status = (_content(path) for path in (run.results, run.before, run.status))
    points, damaged = parse_lines(run.metrics_log, lambda line: dict(parse_json(line)))
    state = _state(run, status, has_results=results is not None)
    detail = "" if state is RunState.FINISHED else _progress(points, int(config["num_updates"]))
    if damaged:
        detail += f" (damaged lines in {run.metrics_log.name}: {len(damaged)})"
    last = points[-1] if points else {}
    updates = [point["metrics"] for point in points if point.get("kind", "update") == "update"]
    results = results or {}
    return RunOverview(
        folder=run.path,
        state=state,
        detail=detail.strip(),
        changed=in_words(run.changes or {}),
        before=_success(results.get("before") or before),
        after=_success(results.get("after") or results.get("success")),
        num_rollouts=int(sum(metrics.get("train/num_rollouts", 0) for metrics in updates)),
        env_steps=int(last.get("env_steps", 0)),
        wall_s=float(last.get("wall_s", 0.0)),
        demonstrations=run.demonstrations,
    )


def _state(run: RunDir, ended: Mapping[str, Any] | None, *, has_results: bool) -> RunState:
    if run.is_running:
        return RunState.RUNNING
    status = (ended or {}).get("status")
    if status == "FAILED":
        return RunState.FAILED
    return RunState.FINISHED if has_results else RunState.INTERRUPTED


def _progress(points: list[dict[str, Any]], num_updates: int) -> str:
    if not points:
        return "at the start"
    stage, number = points[-1].get("stage", RIPT), points[-1]["update"]
    return f"update {number} of {num_updates}" if stage == RIPT else f"{stage}, step {number}"


def _success(evaluation: Mapping[str, Any] | None) -> float | None:
    return None if evaluation is None else float(evaluation["success_rate"])


def _content(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or none if there is no file."""
    return read_object(path) if path.exists() else None
