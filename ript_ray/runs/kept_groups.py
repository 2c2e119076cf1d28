"""Finished groups on disk until a checkpoint makes them superfluous: a killed driver need not roll them out again.

Per group there is a note by the driver (what it decided on, and which weights acted) and, if the group is trained, the
group itself, written by the learner that has it anyway. Nothing is flushed to the disk: what a power cut damages is
noticed by its hash, and rolled out again. `ript_ray.runs.recalling_runtime` uses these files.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pydantic
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ript_ray.errors import CheckpointError
from ript_ray.rl.callbacks import RolloutStats, UpdateRecord
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.rollout_worker import summarize
from ript_ray.storage.reading import parse_json, read_bytes, read_object
from ript_ray.types import Arrays, Group, GroupSummary, Rollout, Version

SCHEMA = 1
"""Version of both files; other versions are ignored, and their groups rolled out again."""

HASH_BYTES = 32

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Note:
    """What the driver knows of a finished group.

    Attributes:
        summary: The group without its record.
        weights: SHA-256 of the weights that acted.
        is_trained: Whether the group went to the learner.
        schema: See `SCHEMA`.
    """

    summary: GroupSummary
    weights: str
    is_trained: bool
    schema: int = SCHEMA


_READ = pydantic.TypeAdapter(Note)


@dataclass(frozen=True)
class KeptGroups:
    """The folder of these files; can be sent to other processes.

    Attributes:
        folder: An absolute path; it is created by the first file.
    """

    folder: Path

    def save(self, group: Group) -> None:
        """Write a group. Never raises: without it, only a killed run has more to repeat."""
        try:
            content = _encode(group)
            self._write(self._file(group.index, "group"), hashlib.sha256(content).digest() + content)
        except (OSError, SafetensorError) as error:
            _warn_once(self.folder, getattr(error, "strerror", None) or str(error))

    def save_note(self, note: Note) -> None:
        """Write a note; see `save`."""
        try:
            self._write(self._file(note.summary.index, "json"), json.dumps(asdict(note)).encode())
        except OSError as error:
            _warn_once(self.folder, error.strerror or str(error))

    def note(self, index: int) -> Note | None:
        """Return the note of a group, or None if there is none that can be read."""
        try:
            note = _READ.validate_python(read_object(self._file(index, "json")))
        except (CheckpointError, ValueError):
            return None
        return note if note.schema == SCHEMA and note.summary.index == index else None

    def group(self, note: Note) -> Group | None:
        """Return the group that a note is of, or None if it is missing, damaged or another one."""
        try:
            content = read_bytes(self._file(note.summary.index, "group"))
        except CheckpointError:
            return None
        if hashlib.sha256(content[HASH_BYTES:]).digest() != content[:HASH_BYTES]:
            return None
        try:
            group = _decode(content[HASH_BYTES:])
        except (ValueError, KeyError, TypeError, SafetensorError):
            return None
        summary = replace(summarize(group, None), num_parts=note.summary.num_parts)
        return group if summary == note.summary else None

    def remove_before(self, index: int) -> None:
        """Delete what is kept of the groups before `index`."""
        for path in self.folder.glob("*"):
            if path.name < _name(index):
                path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(list(self.folder.glob("*.json")))

    def _file(self, index: int, suffix: str) -> Path:
        return self.folder / f"{_name(index)}.{suffix}"

    def _write(self, path: Path, content: bytes) -> None:
        self.folder.mkdir(exist_ok=True)
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.write_bytes(content)
        unfinished.replace(path)


class KeptGroupsCleaner:
    """Training callback that deletes the groups which the newest checkpoint has made superfluous."""

    def __init__(self, kept: KeptGroups, checkpoint_of: Callable[[int], Path]):
        """Clean up after the callback that saves checkpoints.

        Args:
            kept: The groups.
            checkpoint_of: Returns where the checkpoint of an update belongs.
        """
        self._kept = kept
        self._checkpoint_of = checkpoint_of

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        """Do nothing."""

    def on_update(self, record: UpdateRecord) -> None:
        """Delete the groups up to the end of this update, if it has been saved."""
        if self._checkpoint_of(record.progress.update).exists():
            self._kept.remove_before(record.progress.next_index)


@functools.cache
def _warn_once(folder: Path, reason: str) -> None:
    logger.warning("a killed run will repeat its groups: they cannot be kept in %s: %s", folder, reason)


def _name(index: int) -> str:
    return f"{index:09d}"


def _encode(group: Group) -> bytes:
    arrays: Arrays = {}
    for member, rollout in enumerate(group.rollouts):
        named = {f"record/{name}": array for name, array in rollout.record.items()}
        named |= {"log_probs": rollout.log_probs_TU, "valid": rollout.valid_TU}
        arrays |= {f"{member}/{name}": np.ascontiguousarray(array) for name, array in named.items()}
    outcomes = [(bool(rollout.success), rollout.num_steps) for rollout in group.rollouts]
    header = json.dumps({"index": group.index, "version": group.version, "outcomes": outcomes}).encode()
    return len(header).to_bytes(8, "little") + header + save(arrays)


def _decode(content: bytes) -> Group:
    end = 8 + int.from_bytes(content[:8], "little")
    header, arrays = parse_json(content[8:end]), load(content[end:])

    def rollout(member: int, success: bool, num_steps: int) -> Rollout:
        record = f"{member}/record/"
        return Rollout(
            success,
            num_steps,
            {name.removeprefix(record): array for name, array in arrays.items() if name.startswith(record)},
            arrays[f"{member}/log_probs"],
            arrays[f"{member}/valid"],
        )

    rollouts = tuple(rollout(member, *outcome) for member, outcome in enumerate(header["outcomes"]))
    return Group(header["index"], Version(header["version"]), rollouts)
