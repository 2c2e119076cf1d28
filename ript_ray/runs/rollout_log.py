"""What it takes to replay any rollout of a run: a line per group, and the weights of every version that acted.

The lines say what was drawn and what came of it; seeds and contexts follow from the experiment. Weights are those
that train: the others stay as the checkpoint of update 0 has them.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pydantic
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from ript_ray.errors import CheckpointError, StorageError
from ript_ray.policies.base import Policy
from ript_ray.policies.state_dict import copy_into
from ript_ray.rl.callbacks import RolloutStats, UpdateRecord
from ript_ray.rl.context_stream import ContextStream
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.weights import snapshot, tensors_of
from ript_ray.storage.atomic import atomic_write, os_errors_as_storage_error
from ript_ray.storage.jsonl import AppendOnlyLog
from ript_ray.types import GroupSummary, Progress, Version, Weights


@dataclass(frozen=True)
class GroupRecord:
    """One finished group.

    Attributes:
        group: Its index in the run.
        update: The update whose batch was being collected.
        version: Of the policy that acted.
        task: Name of the task.
        context: Place of its context among the experiment's training contexts, from 0.
        successes: Per rollout 1 or 0, none where the environment answered something else.
        num_steps: Environment steps of each rollout.
        verdict: Whether it entered the batch, and if not, why.
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
    """Writes down each group, and keeps the weights of each update: an observer of `train`, and a context manager.

    It must observe before whoever saves checkpoints, so that what a checkpoint follows from is on the disk. A full
    disk does not end the run: lines are written later, weights are left out, and either is announced.
    """

    def __init__(
        self,
        groups: Path,
        weights: Path | None,
        stream: ContextStream,
        *,
        start: Progress,
        announce: Callable[[str], None] = lambda _: None,
    ):
        """Go on from `start`: what comes after it will be done again, and is dropped.

        Args:
            groups: The file of lines; it may exist.
            weights: The folder of weights, or none where they are not to be kept.
            stream: Where contexts come from.
            start: Where training stands.
            announce: Told in words of what cannot be written now.

        Raises:
            StorageError: The disk does not take the shortened file.
        """
        self._stream = stream
        self._weights = weights
        self._announce = announce
        self._lines = AppendOnlyLog(groups, "groups")
        earlier = read_groups(groups)
        self._lines.rewrite(_line_of(record) for record in earlier if record.group < start.next_index)
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
        """Note a group; it is written when the update ends."""
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
        """Write the groups down, and keep the weights that act from now on."""
        self._flush()
        if self._weights is not None:
            try:
                save_weights(weights_file(self._weights, record.weights.version), record.weights)
            except StorageError as error:
                self._announce(f"{error}; rollouts of this version can be replayed only if it has a checkpoint")

    def _flush(self) -> None:
        self._lines.flush()
        if self._lines.error:
            self._announce(f"{self._lines.error}; trying again after the next update")


def read_groups(path: Path) -> list[GroupRecord]:
    """All groups of a file, up to a line that was cut short; none where there is no file."""
    records: list[GroupRecord] = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            records.append(_READ.validate_json(line, strict=True))
        except pydantic.ValidationError:
            break
    return records


def weights_file(folder: Path, version: int) -> Path:
    """Where the weights of a version belong."""
    return folder / f"update-{version:05d}.safetensors"


def save_weights(path: Path, weights: Weights) -> None:
    """Write weights with their checksum; the file is there whole or not at all.

    Raises:
        StorageError: The disk does not take them.
    """
    with os_errors_as_storage_error(path):
        path.parent.mkdir(exist_ok=True)
    atomic_write(path, save(dict(tensors_of(weights)), {"sha256": weights.checksum}))


def load_weights(path: Path, policy: Policy) -> None:
    """Load weights into a policy.

    Raises:
        CheckpointError: The file is missing or damaged, or does not fit the policy; the message names it.
    """
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
    return json.dumps(asdict(record))
