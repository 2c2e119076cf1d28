"""Rollouts once more: the same context, seeds and weights, in the same batch, so that each comes out as it did.

Actors act on all rollouts of a request as one batch, and the last bits of a floating-point sum differ with the size of
a batch. So a rollout is never replayed alone, but with those it was batched with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ript_ray.data.contexts import training_contexts
from ript_ray.errors import CheckpointError, ReplayError
from ript_ray.evaluation.evaluate import EvaluationResult, evaluation_requests
from ript_ray.evaluation.video import Episode, VideoSettings, draw, rerun_request, write_gif
from ript_ray.policies.quest.policy import QuestPolicy
from ript_ray.rl.context_stream import ContextStream
from ript_ray.rl.train import group_request
from ript_ray.runs import checkpoint
from ript_ray.runs.provenance import versions
from ript_ray.runs.rollout_log import GroupRecord, load_weights, read_groups, weights_file
from ript_ray.runs.run_dir import RunDir
from ript_ray.runs.saved_policy import SavedPolicy, components_of
from ript_ray.types import Context, RolloutRequest


@dataclass(frozen=True)
class RecordedRun:
    """A run whose rollouts can be replayed.

    Attributes:
        folder: Its folder.
        source: Experiment, and the policy of version 0.
        records: What it wrote of each group, by the group's index.
    """

    folder: RunDir
    source: SavedPolicy
    records: dict[int, GroupRecord]

    @classmethod
    def open(cls, run: Path) -> "RecordedRun":
        """Read a run's folder.

        Raises:
            CheckpointError: It is none, holds no groups, or its first checkpoint is damaged.
        """
        folder = RunDir(run)
        if not folder.config.is_file():
            raise CheckpointError(f"{run} is not the folder of a run: it has no {folder.config.name}")
        records = {record.group: record for record in read_groups(folder.groups)}
        if not records:
            raise CheckpointError(f"{run} has no group to replay: {folder.groups.name} is missing or empty")
        return cls(folder, checkpoint.load(folder.checkpoint(0)), records)

    def record(self, group: int) -> GroupRecord:
        """What was written of a group.

        Raises:
            ReplayError: Nothing was.
        """
        if group not in self.records:
            known = f"{len(self.records)} groups from {min(self.records)} to {max(self.records)}"
            raise ReplayError(f"{self.folder.groups} has no group {group}; it holds {known}")
        return self.records[group]

    def repeat(self, record: GroupRecord) -> list[Episode]:
        """Run a group again as its actor did; gives what was done in each of its rollouts.

        Raises:
            ReplayError: It does not come out as recorded, or the weights that acted are not there any more.
        """
        experiment = self.source.experiment
        stream = ContextStream(training_contexts(experiment), experiment.seed)
        request = group_request(stream, record.group, group_size=experiment.sampling.group_size, seed=experiment.seed)
        policy = self.policy(record.version)
        parts = replace(components_of(self.source), build_policy=lambda: policy)
        summary, episodes = rerun_request(parts, request)
        successes = tuple({1.0: 1, 0.0: 0}.get(success) for success in summary.successes)
        found = (request.contexts[0].task, stream.dataset_index(record.group), successes, summary.num_steps)
        written = (record.task, record.context, record.successes, record.num_steps)
        if found != written:
            what = f"task, context, successes and steps are {found}, not {written}"
            raise ReplayError(f"group {record.group} does not come out as recorded: {what}; {self._differences()}")
        return episodes

    def policy(self, version: int) -> QuestPolicy:
        """The policy of a version: from the weights kept of it, else from its checkpoint.

        Raises:
            ReplayError: There is neither.
            CheckpointError: What is there is damaged.
        """
        kept = weights_file(self.folder.weights, version)
        if version == 0:
            return self.source()
        if kept.exists():
            policy = self.source()
            load_weights(kept, policy)
            return policy
        saved = self.folder.checkpoint(version)
        if saved.exists():
            return checkpoint.load(saved)()
        known = sorted({_number(path) for path in (*kept.parent.glob("update-*"), *saved.parent.glob("update-*"))})
        raise ReplayError(
            f"version {version} of the policy, which acted, is not in {self.folder.path} any more (keep-weights is "
            f"{self.source.experiment.keep_weights}); the versions there are {', '.join(map(str, known))}"
        )

    def _differences(self) -> str:
        then, now = self.folder.versions, versions()
        names = [name for name in sorted(then | now) if then.get(name) != now.get(name)]
        changed = ", ".join(f"{name} {then.get(name)} (now {now.get(name)})" for name in names)
        return f"since the run began there changed: {changed}" if changed else "every version is that of the run"


def write_evaluation_videos(
    source: SavedPolicy,
    contexts: Sequence[Context],
    result: EvaluationResult,
    *,
    folder: Path,
    video_settings: VideoSettings,
) -> list[Path]:
    """Film the first success and the first failure of each task, where there is one.

    Args:
        source: What was measured.
        contexts: On what.
        result: What came of it.
        folder: Where the videos go.
        video_settings: How they look.

    Raises:
        ReplayError: A rollout does not come out as it did.
        StorageError: The disk does not take a video.
    """
    experiment = source.experiment
    batch_size = experiment.evaluation.batch_size
    outcomes = [success for found in result.outcomes.values() for success in found]
    wanted = _first_of_each(contexts, outcomes)
    paths = []
    for request in evaluation_requests(contexts, batch_size=batch_size, seed=experiment.seed):
        rows = [row for row in range(len(request.contexts)) if request.index + row in wanted]
        if rows:
            episodes = _act_as_measured(source, request, outcomes)
            for row in rows:
                paths.append(folder / f"{wanted[request.index + row]}.gif")
                write_gif(paths[-1], draw(episodes[row], experiment.benchmark, video_settings))
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


def _act_as_measured(source: SavedPolicy, request: RolloutRequest, outcomes: Sequence[bool]) -> list[Episode]:
    _, episodes = rerun_request(components_of(source), request)
    found = [episode.success for episode in episodes]
    measured = list(outcomes[request.index : request.index + len(found)])
    if found != measured:
        raise ReplayError(
            f"the rollouts from context {request.index} on do not come out as they were measured: {found}, not "
            f"{measured}; the machines that measured them differ from this one"
        )
    return episodes


def _number(path: Path) -> int:
    return int(path.name.removeprefix("update-").removesuffix(".safetensors"))
