"""Rollouts repeated exactly: the same context, seeds and weights, in the same batch.

Actors act on all rollouts of a request as one batch, and the last bits of a floating-point sum differ with the size of
a batch. So a rollout is never replayed alone, but with those it was batched with.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ript_ray.data.contexts import training_stream
from ript_ray.errors import CheckpointError, ReplayError
from ript_ray.evaluation.evaluate import EvaluationResult
from ript_ray.evaluation.video import ReplayedRollout, VideoSettings, render_video, rerun_request, write_gif
from ript_ray.policies.base import Policy
from ript_ray.rl.context_stream import ContextStream
from ript_ray.rl.train import group_request
from ript_ray.runs import checkpoint
from ript_ray.runs.provenance import differences, versions
from ript_ray.runs.rollout_log import GroupRecord, load_weights, read_groups, weights_file
from ript_ray.runs.run_dir import RunDir
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.types import Context, RolloutRequest


@dataclass(frozen=True)
class RecordedRun:
    """A run whose rollouts can be replayed.

    Attributes:
        folder: Its directory.
        initial: Experiment, and the policy of version 0.
        stream: The order of its contexts.
        records: What it logged of each group, by the group's index.
    """

    folder: RunDir
    initial: SavedPolicy
    stream: ContextStream
    records: dict[int, GroupRecord]

    @classmethod
    def open(cls, run: Path) -> "RecordedRun":
        """Read a run's directory.

        Raises:
            CheckpointError: It is not one, has no groups, or its first checkpoint is damaged.
        """
        folder = RunDir(run)
        folder.require_run()
        records = {record.group: record for record in read_groups(folder.groups)}
        if not records:
            raise CheckpointError(f"{run} has no group to replay: {folder.groups.name} is missing or empty")
        initial = checkpoint.load(folder.checkpoint(0))
        return cls(folder, initial, training_stream(initial.experiment), records)

    def record(self, group: int) -> GroupRecord:
        """Return what was logged of a group.

        Raises:
            ReplayError: Nothing was.
        """
        if group not in self.records:
            known = f"{len(self.records)} groups from {min(self.records)} to {max(self.records)}"
            raise ReplayError(f"{self.folder.groups} has no group {group}; it holds {known}")
        return self.records[group]

    def repeat(self, record: GroupRecord) -> list[ReplayedRollout]:
        """Run a group again as its actor did, and return what was done in each rollout.

        Raises:
            ReplayError: It does not come out as recorded, or the weights that acted are missing.
        """
        experiment = self.initial.experiment
        request = group_request(self.stream, record.group, sampling=experiment.sampling, seed=experiment.seed)
        policy = self.policy(record.version)
        summary, rollouts = rerun_request(replace(self.initial.components(), build_policy=lambda: policy), request)
        successes = tuple({1.0: 1, 0.0: 0}.get(success) for success in summary.successes)
        index = self.stream.dataset_index(record.group)
        repeated = (request.contexts[0].task, index, successes, summary.num_steps)
        recorded = (record.task, record.context, record.successes, record.num_steps)
        if repeated != recorded:
            what = f"task, context, successes and steps are {repeated}, not {recorded}"
            raise ReplayError(f"group {record.group} does not come out as recorded: {what}; {self._differences()}")
        return rollouts

    def policy(self, version: int) -> Policy:
        """Return the policy of a version: from the weights kept of it, else from its checkpoint.

        Raises:
            ReplayError: There is neither.
            CheckpointError: What is there is damaged.
        """
        if version == 0:
            return self.initial.build()
        kept = weights_file(self.folder.weights, version)
        if kept.exists():
            policy = self.initial.build()
            load_weights(kept, policy)
            return policy
        saved = self.folder.checkpoint(version)
        if saved.exists():
            return checkpoint.load(saved).build()
        known = {_number(path) for path in (*kept.parent.glob("update-*"), *saved.parent.glob("update-*"))}
        groups = [index for index, record in self.records.items() if record.version in known]
        raise ReplayError(
            f"version {version} of the policy, which acted, is not in {self.folder.path} any more; those of versions "
            f"{_ranges(sorted(known))} are, so groups {_ranges(sorted(groups))} can be replayed. "
            "--keep-weights --keep-versions all, given when a run begins, keeps every version"
        )

    def _differences(self) -> str:
        found = differences(self.folder.versions, versions(self.initial.experiment.benchmark.packages))
        changed = ", ".join(f"{name} {change}" for name, change in found.items())
        return f"changed since the run began: {changed}" if changed else "every version is that of the run"


def write_evaluation_videos(
    policy: SavedPolicy,
    requests: Sequence[RolloutRequest],
    result: EvaluationResult,
    *,
    folder: Path,
    video_settings: VideoSettings,
) -> list[Path]:
    """Write a video of the first success and the first failure of each task, if there is one.

    Args:
        policy: What was evaluated.
        requests: On what.
        result: What came of it.
        folder: Where the videos go.
        video_settings: Their size and quality.

    Raises:
        ReplayError: A rollout does not come out as it did.
        StorageError: A video cannot be written.
    """
    outcomes = [success for found in result.outcomes.values() for success in found]
    chosen = _first_of_each([context for request in requests for context in request.contexts], outcomes)
    paths, start = [], 0
    for request in requests:
        end = start + len(request.contexts)
        if rows := [row for row in range(start, end) if row in chosen]:
            rollouts = _repeat_evaluation(policy, request, outcomes[start:end])
            for row in rows:
                paths.append(folder / f"{chosen[row]}.gif")
                write_gif(paths[-1], render_video(rollouts[row - start], policy.experiment.benchmark, video_settings))
        start = end
    return paths


def _first_of_each(contexts: Sequence[Context], outcomes: Sequence[bool]) -> dict[int, str]:
    """Index among all contexts, and name, of the first success and the first failure of each task."""
    tasks = [context.task for context in contexts]
    chosen: dict[tuple[str, bool], int] = {}
    for index, (task, success) in enumerate(zip(tasks, outcomes, strict=True)):
        chosen.setdefault((task, success), index)
    return {
        index: f"{task}-{'success' if success else 'failure'}-context-{index - tasks.index(task):03d}"
        for (task, success), index in chosen.items()
    }


def _repeat_evaluation(policy: SavedPolicy, request: RolloutRequest, outcomes: Sequence[bool]) -> list[ReplayedRollout]:
    _, rollouts = rerun_request(policy.components(), request)
    repeated = [rollout.success for rollout in rollouts]
    if repeated != list(outcomes):
        raise ReplayError(
            f"the rollouts of {request.contexts[0].task} do not come out as in the evaluation: {repeated}, not "
            f"{list(outcomes)}; the machines that evaluated them differ from this one"
        )
    return rollouts


def _number(path: Path) -> int:
    return int(path.name.removeprefix("update-").removesuffix(".safetensors"))


def _ranges(numbers: Sequence[int]) -> str:
    """The numbers, ascending, with runs of consecutive ones as "3 to 7"; none as "none"."""
    parts = []
    for _, group in itertools.groupby(enumerate(numbers), key=lambda item: item[1] - item[0]):
        run = [number for _, number in group]
        parts.append(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]))
    return ", ".join(parts) or "none"
