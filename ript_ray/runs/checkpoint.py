"""A checkpoint is a directory: weights (safetensors), the experiment (JSON) and a manifest of their hashes.

One taken during training also holds the optimizer's moments and the progress, so that training resumes exactly. A
checkpoint appears whole or not at all: written under a temporary name, flushed to disk, then renamed. No file is ever
read by unpickling.
"""

import json
import logging
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ript_ray.config.serialization import Content, flatten, from_json, read_experiment, to_json
from ript_ray.errors import CheckpointError
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.ledger import Ledger
from ript_ray.runs.run_dir import POST_TRAINING_PREFIX, checkpoint_name
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.storage.hashed_dir import (
    MANIFEST,
    UNFINISHED,
    atomic_directory,
    load_arrays,
    require_finite,
    save_arrays,
    verify_manifest,
)
from ript_ray.storage.reading import read_object
from ript_ray.types import RIPT, Arrays, Progress

WEIGHTS = "policy.safetensors"
EXPERIMENT = "experiment.json"
FILES = (WEIGHTS, EXPERIMENT)
BASE = "base.json"
LEARNER = "learner.safetensors"
TRAINING = "training.json"

LARGEST = 2**53
"""No count or time of a run is larger; from here on, JSON readers round."""

SKIPPED = ".skipped-"
"""Part of the names of checkpoints that a resumed run has passed over."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunTotals:
    """Running sums of a run, over all processes that worked on it.

    Attributes:
        wall_s: Seconds of wall time.
        env_steps: Environment steps of post-training.
        num_rollouts: Rollouts of post-training.
        skipped_updates: Updates skipped because something was not finite.
        failed_saves: Saves that failed because a file could not be written.
        groups: Groups by verdict.
        ledger: Where every dispatched group has gone.
        core_s: Processor time of all processes of post-training, evaluations included, in seconds.
        dataset: What tells the demonstrations of a supervised stage from others, by name.
    """

    wall_s: float = 0.0
    env_steps: int = 0
    num_rollouts: int = 0
    skipped_updates: int = 0
    failed_saves: int = 0
    groups: dict[str, int] = field(default_factory=dict)
    ledger: Ledger = Ledger()  # noqa: RUF009 (frozen)
    core_s: float = field(default=0.0, metadata={"before": 0.0})
    dataset: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingState:
    """What training needs besides weights and experiment to resume exactly.

    Attributes:
        progress: Progress of post-training.
        totals: Running sums of the run.
        learner: The optimizer's moments; in a supervised stage also the state of torch's generator.
        stage: The stage in progress.
        step: Optimizer steps of a supervised stage so far.
    """

    progress: Progress
    totals: RunTotals = RunTotals()
    learner: Arrays = field(default_factory=dict, repr=False)
    stage: str = RIPT
    step: int = 0

    @property
    def number(self) -> int:
        """Updates so far; of a supervised stage, optimizer steps."""
        return self.progress.update if self.stage == RIPT else self.step


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that a run resumes from, read and verified once.

    Attributes:
        folder: The checkpoint.
        policy: Its policy.
        state: Its training state.
        skipped: Why each newer checkpoint cannot be resumed from.
    """

    folder: Path
    policy: SavedPolicy
    state: TrainingState
    skipped: tuple[str, ...] = ()


class CheckpointClock:
    """Tells when a checkpoint is due by the time since the last one, whatever the number of updates or steps."""

    def __init__(self, minutes: float = math.inf):
        self._interval_s = 60 * minutes
        self._started = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last checkpoint, or attempt to save one, is that long ago."""
        return time.monotonic() - self._started >= self._interval_s

    def restart(self) -> None:
        """Count from now on."""
        self._started = time.monotonic()


@dataclass(frozen=True)
class _TrainingFile:
    """Content of `training.json`."""

    stage: str
    step: int
    progress: Progress
    totals: RunTotals


def save(folder: Path, policy: SavedPolicy, state: TrainingState | None = None) -> None:
    """Write a checkpoint.

    Args:
        folder: Where it goes; it must not exist.
        policy: Experiment and weights.
        state: Where training can resume from here; without, the checkpoint holds weights only.

    Raises:
        CheckpointError: The folder exists, or a weight is not finite.
        StorageError: A file cannot be written; nothing is left behind.
    """
    require_finite({**policy.arrays, **(state.learner if state else {})})
    base = policy.experiment.policy.base_sha256()
    with atomic_directory(folder) as unfinished:
        save_arrays(policy.arrays, unfinished / WEIGHTS)
        (unfinished / EXPERIMENT).write_text(to_json(policy.experiment))
        if base is not None:
            (unfinished / BASE).write_text(json.dumps({"sha256": base}))
        if state is not None:
            save_arrays(state.learner, unfinished / LEARNER)
            content = _TrainingFile(state.stage, state.step, state.progress, state.totals)
            (unfinished / TRAINING).write_text(to_json(content))


def load(folder: Path) -> SavedPolicy:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: The folder or a file is missing, damaged or foreign, or the base that the weights belong to has
            changed; the message names it.
    """
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} is not a checkpoint of ript-ray: it has no {MANIFEST}")
    verify_manifest(folder, FILES)
    experiment = read_experiment(folder / EXPERIMENT)
    _require_same_base(folder, experiment.policy.base_sha256())
    return SavedPolicy(experiment, load_arrays(folder / WEIGHTS))


def load_state(folder: Path) -> TrainingState | None:
    """Read and verify the training state of a checkpoint; none if it holds weights only. See `load` for errors."""
    if not (folder / TRAINING).is_file():
        return None
    verify_manifest(folder, (LEARNER, TRAINING))
    content = from_json(folder / TRAINING, _TrainingFile, "a training state", {1: _structure_totals})
    _require_possible(content, folder / TRAINING)
    return TrainingState(content.progress, content.totals, load_arrays(folder / LEARNER), content.stage, content.step)


def _require_possible(content: _TrainingFile, path: Path) -> None:
    """Check that every count and time is a number from 0 to `LARGEST`, before anything starts from them."""
    for name, value in flatten(asdict(content)).items():
        if not isinstance(value, str) and not 0 <= value <= LARGEST:  # NaN fails, too
            raise CheckpointError(f"{path} does not describe a training state: {name} is {value}")


def _require_same_base(folder: Path, expected: str | None) -> None:
    found = None
    if (folder / BASE).is_file():
        verify_manifest(folder, (BASE,))
        found = read_object(folder / BASE).get("sha256")
    if found != expected:
        raise CheckpointError(
            f"{folder} belongs to a base model with SHA-256 {found}, but the one its experiment names has {expected}"
        )


def _structure_totals(content: Content) -> Content:
    """Schema 1 had one flat table of floats."""
    flat: dict[str, Any] = content.get("totals", {})
    whole = {name: int(value) for name, value in flat.items() if name != "wall_s"}
    totals = {
        "wall_s": flat.get("wall_s", 0.0),
        **{name: whole.get(name, 0) for name in ("env_steps", "num_rollouts", "skipped_updates", "failed_saves")},
        "groups": {verdict: whole[f"groups/{verdict}"] for verdict in Verdict if f"groups/{verdict}" in whole},
        "ledger": {name: whole.get(f"ledger/{name}", 0) for name in asdict(Ledger())},
        "dataset": {name: whole[name] for name in ("num_windows", "crc32_of_chunks") if name in whole},
    }
    return {**content, "totals": totals}


def saved_in(run: Path) -> list[Path]:
    """List the checkpoints of a run, oldest first: stage by stage, each by its number; not by way of a link to it."""
    run = run.resolve() if run.is_symlink() else run  # `latest` may lead elsewhere before they are read
    folders = [path for path in (run / "checkpoints").glob("[!.]*-*") if path.name.rpartition("-")[2].isdecimal()]
    prefixes = [*_stages_of(folders), POST_TRAINING_PREFIX]
    known = [folder for folder in folders if _prefix_of(folder) in prefixes]
    return sorted(known, key=lambda folder: (prefixes.index(_prefix_of(folder)), number_of(folder)))


def has_checkpoints(run: Path) -> bool:
    """Return whether a run ever finished saving a checkpoint, even if it is damaged or renamed by now."""
    return any(not path.name.endswith(UNFINISHED) for path in (run / "checkpoints").glob("*"))


def _stages_of(folders: list[Path]) -> list[str]:
    """The stages of the run that these checkpoints belong to, in their order."""
    for folder in sorted(folders, reverse=True):
        try:
            return [str(stage) for stage in read_object(folder / EXPERIMENT)["stages"]]
        except (CheckpointError, KeyError, TypeError):
            continue  # this one is damaged; whoever loads it is told
    return sorted({_prefix_of(folder) for folder in folders} - {POST_TRAINING_PREFIX})


def _prefix_of(folder: Path) -> str:
    return folder.name.rpartition("-")[0]


def number_of(folder: Path) -> int:
    """Return the number of updates, or of optimizer steps, in a checkpoint's name."""
    return int(folder.name.rpartition("-")[2])


def latest_valid(run: Path) -> ResumePoint:
    """Load the newest checkpoint of a run that training can resume from.

    Raises:
        CheckpointError: There is none; the message lists what is wrong with each.
    """
    point, problems = _newest(run, _resume_point, "to resume from")
    return replace(point, skipped=problems)


def load_latest(path: Path) -> SavedPolicy:
    """Read and verify a checkpoint, or the newest valid one of a run; each that is skipped is logged with the reason.

    Raises:
        CheckpointError: There is none; the message says what is wrong with each.
    """
    if find(path) == path:
        return _load_checked(path)
    policy, problems = _newest(path, _load_checked, "that is valid")
    for reason in problems:
        logger.warning("skipping a checkpoint: %s", reason)
    return policy


def _newest(run: Path, load_from: Callable[[Path], T], what: str) -> tuple[T, tuple[str, ...]]:
    """Return what the newest checkpoint gives that can be loaded, and what is wrong with each newer one."""
    problems: list[str] = []
    for folder in reversed(saved_in(run)):
        try:
            return load_from(folder), tuple(problems)
        except (CheckpointError, OSError) as error:
            problems.append(str(error))
    raise CheckpointError("\n  ".join([f"{run} has no checkpoint {what}", *problems]))


def _resume_point(folder: Path) -> ResumePoint:
    policy, state = _load_checked(folder), load_state(folder)
    if state is None or folder.name != checkpoint_name(state.number, state.stage):
        raise CheckpointError(f"{folder} has no optimizer state")
    return ResumePoint(folder, policy, state)


def _load_checked(folder: Path) -> SavedPolicy:
    policy = load(folder)
    try:
        policy.check()
    except CheckpointError as error:
        raise CheckpointError(f"{folder / WEIGHTS} is foreign: {error}") from error
    return policy


def find(path: Path) -> Path:
    """Return the checkpoint that `path` means: itself, or the newest one of a run.

    Raises:
        CheckpointError: There is nothing at `path`, or it is neither a run nor a checkpoint.
    """
    if not path.exists():
        raise CheckpointError(f"there is nothing at {path}")
    if (path / MANIFEST).is_file():
        return path
    saved = saved_in(path)
    if not saved:
        raise CheckpointError(f"{path} is neither a checkpoint nor a run folder with checkpoints")
    return saved[-1]


def quarantine_newer(folder: Path) -> None:
    """Rename the checkpoints of a run that are newer than `folder`: the resumed run will make them again.

    What an earlier resume renamed is deleted, and so is what a killed process left unfinished: it would fill the disk.
    """
    for leftover in (*folder.parent.glob(f".*{SKIPPED}*"), *folder.parent.glob(f".*{UNFINISHED}")):
        shutil.rmtree(leftover, ignore_errors=True)
    saved = saved_in(folder.parent.parent)
    for newer in saved[saved.index(folder) + 1 :]:
        newer.rename(newer.with_name(f".{newer.name}{SKIPPED}{time.time_ns()}"))
