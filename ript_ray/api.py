"""The Python API: run, resume, evaluate and compare experiments, and act with a policy, in a few lines.

Everything here is offered by `ript_ray` itself (`ript_ray.run`, `ript_ray.evaluate`, ...); docs/python_api.md shows it
at work. The command line is made of the same functions.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from ript_ray.checks import require
from ript_ray.config.experiment import Experiment
from ript_ray.data.contexts import held_out_contexts, held_out_requests, require_untrained
from ript_ray.errors import CheckpointError
from ript_ray.evaluation.comparison import Comparison
from ript_ray.evaluation.evaluate import EvaluationResult, evaluation_requests
from ript_ray.evaluation.evaluate import evaluate as evaluate_on
from ript_ray.evaluation.summary import Summary
from ript_ray.pipeline import Results, resume_experiment, run_experiment
from ript_ray.policies.base import Policy
from ript_ray.rl.protocols import Components
from ript_ray.rl.rollout_worker import RolloutWorker
from ript_ray.runs import checkpoint
from ript_ray.runs.model_dir import Model, from_pretrained, is_model, load_model
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.runs.summary import summarize_runs
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.factory import open_runtime, session
from ript_ray.seeding import Split
from ript_ray.tracking.console import View
from ript_ray.tracking.logs import ViewMode, console_logging
from ript_ray.tracking.store import Origin, TrackerName
from ript_ray.types import Context, Rollout, RolloutRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationOverrides:
    """What an evaluation changes of the experiment.

    Attributes:
        contexts_per_task: Held-out contexts per task, or none for the experiment's own number.
        tasks: Tasks, or none for the experiment's own.
        split: Which held-out contexts: those to report (test), or those to tune and choose by (validation).
        deterministic: Whether the policies act without chance, or none for the experiment's own setting.
    """

    contexts_per_task: int | None = None
    tasks: tuple[str, ...] | None = None
    split: Split = Split.TEST
    deterministic: bool | None = None

    def apply_to(self, experiment: Experiment) -> Experiment:
        """Return the experiment with these.

        Raises:
            ConfigError: There is no such task, the number is out of range, or the policy has no deterministic mode.
        """
        changes: dict[str, Any] = {}
        if self.contexts_per_task is not None:
            changes |= dict.fromkeys(("contexts_per_task", "validation_contexts_per_task"), self.contexts_per_task)
        if self.deterministic is not None:
            changes["deterministic"] = self.deterministic
        evaluation = replace(experiment.evaluation, **changes)
        return replace(experiment, tasks=self.tasks or experiment.tasks, evaluation=evaluation)


@dataclass(frozen=True)
class PolicyComparison:
    """Two policies on the same contexts with the same seeds.

    Attributes:
        experiment: The experiment whose contexts they met: the first one's, with overrides.
        first: Success of the first policy.
        second: Success of the second.
        difference: The paired difference, second less first.
    """

    experiment: Experiment
    first: EvaluationResult
    second: EvaluationResult
    difference: Comparison


def run(
    experiment: Experiment,
    cluster: Cluster | None = None,
    *,
    runs: str | Path = "runs",
    view: str = "auto",
    label: str = "",
    trackers: Sequence[TrackerName] = ("mlflow",),
) -> Results:
    """Run an experiment to its end.

    Args:
        experiment: What is learned.
        cluster: Where; unless given, Ray on this machine with one rollout actor per core.
        runs: Folder of the runs of all experiments.
        view: auto (live in a terminal, a line per update elsewhere), lines, or quiet.
        label: A word at the end of the run's name, in its folder and in MLflow.
        trackers: Where metrics go besides metrics.jsonl: mlflow, tensorboard, both, or none.

    Raises:
        RiptError: A setting is impossible, something it needs is missing, or it fails; the message says what to do.
    """
    mode = ViewMode(view)
    with console_logging(mode.log_level), View(mode, experiment.num_updates) as shown:
        origin = Origin.here(tuple(trackers))
        where = cluster or Cluster()
        return run_experiment(experiment, where, runs=Path(runs), view=shown, label=label, origin=origin)


def resume(
    path: str | Path,
    cluster: Cluster | None = None,
    *,
    view: str = "auto",
    num_updates: int | None = None,
    strict: bool = False,
) -> Results:
    """Resume an interrupted run from its newest valid checkpoint, or extend one; see `run` for the other arguments.

    Args:
        path: The run's folder.
        cluster: Where; it may be another one than before.
        view: See `run`.
        num_updates: Go on to this number of updates, more than the run has; then it may have finished.
        strict: Refuse where the code, a package or the processor is not that of the run's beginning; else warn.

    Raises:
        CheckpointError: The run has finished and is not to be extended, or no checkpoint of it is valid.
        ConfigError: It cannot be extended, or `strict` forbids to resume it.
        RunInUseError: It is still running.
    """
    mode = ViewMode(view)
    with console_logging(mode.log_level):
        return resume_experiment(
            Path(path),
            cluster or Cluster(),
            view_of=lambda experiment: View(mode, experiment.num_updates),
            num_updates=num_updates,
            strict=strict,
        )


def load_policy(path: str | Path) -> Policy:
    """Return the policy of a run (its newest valid checkpoint), a checkpoint or a model folder, ready to act.

    Raises:
        CheckpointError: There is none, or part of it is missing, damaged or foreign; the message names it.
    """
    return from_pretrained(path)


def roll_out(path: str | Path, contexts: Sequence[Context] | None = None) -> tuple[Rollout, ...]:
    """Let the policy of a run or checkpoint act, in this process and as one batch.

    Args:
        path: A run (its newest checkpoint) or a checkpoint.
        contexts: Where to start, one rollout each; unless given, the first held-out context of each task. Seeds are
            those of the experiment's evaluation.

    Raises:
        CheckpointError: There is no valid checkpoint.
    """
    saved = _load(Path(path))
    if contexts is None:
        contexts = held_out_contexts(EvaluationOverrides(contexts_per_task=1).apply_to(saved.experiment))
    parts = saved.components()
    (request,) = evaluation_requests(
        contexts,
        batch_size=len(contexts),
        seed=saved.experiment.evaluation_seed,
        deterministic=saved.experiment.evaluation.deterministic,
    )
    with contextlib.closing(RolloutWorker(parts.build_policy, parts.make_environment, parts.max_steps)) as worker:
        return worker.roll(request)[1].rollouts


def evaluate(
    path: str | Path,
    overrides: EvaluationOverrides | None = None,
    *,
    experiment: Experiment | None = None,
    cluster: Cluster | None = None,
) -> EvaluationResult:
    """Evaluate a policy on held-out contexts; a run's own figures come out again unless something is overridden.

    Args:
        path: A run (its newest checkpoint) or a checkpoint; with `experiment` also a model folder.
        overrides: Other tasks, another number of contexts, another split.
        experiment: Evaluate on its benchmark, contexts and horizon instead of those of the policy's own experiment.
        cluster: Where; unless given, Ray on this machine with one rollout actor per core.

    Raises:
        CheckpointError: There is no valid checkpoint.
        ConfigError: There is no such task, a number is out of range, the policy has no deterministic mode, reads or
            does something else than the benchmark offers, or was trained on some of the contexts.
    """
    overrides = overrides or EvaluationOverrides()
    trained: tuple[Experiment, ...] = ()
    if experiment is None:
        saved = _load(Path(path))
        experiment = saved.experiment
        parts = replace(saved, experiment=overrides.apply_to(experiment)).with_instructions().components()
    else:
        parts, trained = _guest(Path(path), overrides.apply_to(experiment))
    requests = _requests(overrides, experiment, *trained)
    with _session(cluster) as where:
        return _evaluate(parts, requests, where)


def compare(
    first: str | Path,
    second: str | Path,
    overrides: EvaluationOverrides | None = None,
    *,
    cluster: Cluster | None = None,
) -> PolicyComparison:
    """Evaluate two policies on the same contexts with the same seeds.

    Contexts, seeds, horizon and batches are those of the first one's experiment.

    Args:
        first: A run (its newest checkpoint) or a checkpoint.
        second: A run, a checkpoint or a model folder.
        overrides: Other tasks, another number of contexts, another split.
        cluster: Where; unless given, Ray on this machine with one rollout actor per core.

    Raises:
        CheckpointError: There is no valid policy, or `first` is a model folder, which has no experiment.
        ConfigError: The second policy reads or does something else than the first one's benchmark offers, there is
            no such task, a number is out of range, a policy has no deterministic mode, or was trained on some of the
            contexts.
    """
    saved = _load(Path(first))
    overrides = overrides or EvaluationOverrides()
    experiment = overrides.apply_to(saved.experiment)
    contender, trained = _guest(Path(second), experiment)
    for theirs in trained:
        _require_same_benchmark(Path(second), theirs, experiment)
    requests = _requests(overrides, saved.experiment, *trained)
    ours = replace(saved, experiment=experiment).with_instructions().components()
    with _session(cluster) as where:
        results = [_evaluate(parts, requests, where) for parts in (ours, contender)]
    return PolicyComparison(experiment, results[0], results[1], Comparison.of(*results))


def summarize(*runs: str | Path) -> Summary:
    """Summarize finished runs that differ in their seeds alone: means, the worst seed, intervals over seeds.

    Raises:
        CheckpointError: A folder is not that of a run, or the run has not finished or did not post-train.
        ConfigError: There are fewer than two, two have the same seed, or they differ in anything else.
    """
    return summarize_runs([Path(run) for run in runs])


@contextlib.contextmanager
def _session(cluster: Cluster | None) -> Iterator[Cluster]:
    where = cluster or Cluster()
    with session(where):
        yield where


def _load(path: Path) -> SavedPolicy:
    if is_model(path):
        raise CheckpointError(
            f"{path} is a model folder: a policy without an experiment, so without contexts to evaluate it on; compare "
            f"it with a run (`ript-ray compare RUN {path}`), or start an experiment from it (--start-from {path})"
        )
    saved = checkpoint.load(checkpoint.find(path))
    saved.check()  # weights that do not fit are refused here, not in an actor
    return saved


def _requests(overrides: EvaluationOverrides, experiment: Experiment, *others: Experiment) -> list[RolloutRequest]:
    """Return the requests of an evaluation whose contexts neither this nor another experiment trains on."""
    requests = held_out_requests(overrides.apply_to(experiment), overrides.split)
    for trained in (experiment, *others):
        require_untrained([context for request in requests for context in request.contexts], trained)
    return requests


def _evaluate(parts: Components, requests: Sequence[RolloutRequest], cluster: Cluster) -> EvaluationResult:
    with open_runtime(parts, cluster, with_learner=False) as runtime:
        logger.info("evaluating on held-out contexts: %d", sum(len(request.contexts) for request in requests))
        return evaluate_on(runtime, requests)


def _guest(path: Path, host: Experiment) -> tuple[Components, tuple[Experiment, ...]]:
    """Bring a policy into another experiment; return it with the experiment it is from, if any."""
    guest: SavedPolicy | Model
    trained: tuple[Experiment, ...] = ()
    if is_model(path):
        guest = load_model(path)
        config, spec = guest.card.policy, guest.card.environment
    else:
        guest = _load(path)
        config, spec, trained = guest.experiment.policy, guest.experiment.benchmark.spec, (guest.experiment,)
    if host.evaluation.deterministic:
        config.require_deterministic()
    offered = host.benchmark.spec
    mismatches = [f"camera {name}" for name in config.cameras if name not in offered.image_shapes]
    mismatches += [
        f"sensor {name} of length {spec.state_dims[name]}"
        for name in config.sensors
        if offered.state_dims.get(name) != spec.state_dims[name]
    ]
    if spec.action_dim != offered.action_dim:
        mismatches.append(f"actions of {spec.action_dim} entries")
    there = f"{offered.state_dims}, {', '.join(offered.image_shapes)}, actions of {offered.action_dim}"
    require(not mismatches, f"{path} cannot act here: it has {', '.join(mismatches)}, where there is {there}")
    guest = replace(guest, arrays=config.with_instructions(guest.arrays, host.instructions))
    guest.build()  # weights that do not fit are refused here, not in an actor
    parts = SavedPolicy(host, {}).components()
    make = host.benchmark.with_cameras(config.cameras).make
    return replace(parts, build_policy=guest.build, make_environment=make), trained


def _require_same_benchmark(path: Path, theirs: Experiment, ours: Experiment) -> None:
    """Refuse a policy whose experiment has other environments or another horizon."""
    expected, actual = (
        {**asdict(cast(Any, of.benchmark.with_cameras(()))), "max_steps": of.max_steps} for of in (ours, theirs)
    )
    names = [name for name in expected | actual if expected.get(name) != actual.get(name)]
    differing = ", ".join(f"{name} {actual.get(name)}, not {expected.get(name)}" for name in names)
    require(not differing, f"{path} cannot be compared: its experiment has {differing}")
