"""What replaying needs: a line per group, and the weights of the versions that acted, or of the newest of them.

The lines say what was drawn and what came of it; seeds and contexts follow from the experiment. Weights are the
trainable ones: the others stay as the checkpoint of update 0 has them.
"""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pydantic
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from ript_ray.config.experiment import Kept
from ript_ray.errors import CheckpointError, StorageError
from ript_ray.policies.base import Policy
from ript_ray.policies.state_dict import copy_into
from ript_ray.rl.callbacks import RolloutStats, UpdateRecord
from ript_ray.rl.context_stream import ContextStream
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.weights import snapshot, tensors_of
from ript_ray.runs.retention import prune_weights
from ript_ray.storage.atomic import atomic_write, make_directory, os_errors_as_storage_error
from ript_ray.storage.jsonl import AppendOnlyLog, parse_lines
from ript_ray.storage.reading import parse_json, require_regular
from ript_ray.types import GroupSummary, Progress, Version, Weights

logger = logging.getLogger(__name__)


GROUPS_SCHEMA = 2
"""Version of the line format, written to every line; lines of version 1 do not state it."""


@dataclass(frozen=True)
class GroupRecord:
    """One finished group.

    Attributes:
        group: Its index in the run.
        update: The update whose batch was being collected.
        version: Of the policy that acted.
        task: Name of the task.
        context: Index of its context in the experiment's training contexts, from 0.
        successes: Per rollout 1 or 0, none where the environment returned something else.
        num_steps: Environment steps of each rollout.
        verdict: Whether it is mixed, and if not, why. Other groups are rejected, except uniform ones without dynamic
            sampling, and those that were lost on their way to the learner after they had been accepted.
    """

    group: int
    update: int
    version: int
    task: str
    context: int
    successes: tuple[int | None, ...]
    num_steps: tuple[int, ...]
    verdict: Verdict


_READ = pydantic.TypeAdapter(GroupRecord)


class RolloutLog:
    """Training callback that logs each group and keeps the weights of each update; a context manager.

    It comes before the callback that saves checkpoints, so that all that leads to a checkpoint is on disk before it. A
    full disk does not end the run: lines are written later, weights are left out, with a warning.
    """

    def __init__(
        self,
        groups: Path,
        weights: Path | None,
        stream: ContextStream,
        *,
        start: Progress,
        keep_versions: Kept = "all",
    ):
        """Open the log; groups and weights after `start` are dropped, for they will be made again.

        Args:
            groups: The file of lines; it may exist.
            weights: The folder of weights, or none if they are not to be kept.
            stream: The order of the contexts.
            start: Progress of training.
            keep_versions: How many versions of the weights are kept: the newest ones, or all.

        Raises:
            StorageError: The truncated file cannot be written.
        """
        self._stream = stream
        self._weights = weights
        self._keep_versions = keep_versions
        self._lines = AppendOnlyLog(groups, "groups")
        earlier, damaged = _read(groups)
        kept = (_line_of(record) for record in earlier if record.group < start.next_index)
        self._lines.rewrite(kept, keep_old=bool(damaged))
        for path in weights.glob("update-*") if weights else ():
            if path.name > weights_file(path.parent, start.update).name:
                with os_errors_as_storage_error(path):
                    path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        """Queue a group; it is written when the update ends."""
        record = GroupRecord(
            group=summary.index,
            update=stats.update,
            version=summary.version,
            task=self._stream.at(summary.index).task,
            context=self._stream.dataset_index(summary.index),
            successes=tuple({1.0: 1, 0.0: 0}.get(success) for success in summary.successes),
            num_steps=summary.num_steps,
            verdict=verdict,
        )
        self._lines.append(_line_of(record))

    def on_update(self, record: UpdateRecord) -> None:
        """Write the groups, and keep the weights that act from now on."""
        self._flush()
        if self._weights is not None:
            try:
                save_weights(weights_file(self._weights, record.weights.version), record.weights)
                prune_weights(list(self._weights.glob("update-*")), self._keep_versions)
            except StorageError as error:
                logger.warning("%s; rollouts of this version can be replayed only if it has a checkpoint", error)

    def _flush(self) -> None:
        self._lines.flush()
        if self._lines.error:
            logger.warning("%s; retrying after the next update", self._lines.error)


def read_groups(path: Path) -> list[GroupRecord]:
    """Read all groups; a missing file has none. Lines that cannot be read are skipped with a warning.

    A group that was lost on its way to the learner has a second line, which tells what was trained: it counts.

    Raises:
        CheckpointError: A line has a newer schema than `GROUPS_SCHEMA`.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[list[GroupRecord], list[int]]:
    records, damaged = parse_lines(path, lambda line: _parse(line, path))
    return list({record.group: record for record in records}.values()), damaged


def _parse(line: bytes, path: Path) -> GroupRecord:
    _require_known_schema(parse_json(line), path)
    return _READ.validate_json(line, strict=True)


def _require_known_schema(content: object, path: Path) -> None:
    schema = content.get("schema", 1) if isinstance(content, dict) else 1
    if schema not in range(1, GROUPS_SCHEMA + 1):
        raise CheckpointError(
            f"{path} was written by a newer version of ript-ray (schema {schema}); this one reads up to {GROUPS_SCHEMA}"
        )


def weights_file(folder: Path, version: int) -> Path:
    """Where the weights of a version belong."""
    return folder / f"update-{version:05d}.safetensors"


def save_weights(path: Path, weights: Weights) -> None:
    """Write weights with their checksum; the file is there whole or not at all.

    Raises:
        StorageError: They cannot be written.
    """
    with os_errors_as_storage_error(path):
        make_directory(path.parent)
    atomic_write(path, save(dict(tensors_of(weights)), {"sha256": weights.checksum}))


def load_weights(path: Path, policy: Policy) -> None:
    """Load weights into a policy.

    Raises:
        CheckpointError: The file is missing or damaged, or does not fit the policy; the message names it.
    """
    require_regular(path)
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            checksum = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    copy_into(policy.trainable(), tensors, f"{path} does not fit the policy")
    if snapshot(policy, Version(0)).checksum != checksum:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one that was saved")


def _line_of(record: GroupRecord) -> str:
    return json.dumps({"schema": GROUPS_SCHEMA, **asdict(record)})
