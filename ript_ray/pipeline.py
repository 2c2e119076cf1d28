"""One experiment from start to results: supervised stages, evaluation, post-training, evaluation."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from ript_ray.checks import require
from ript_ray.config.changes import changed_options, in_words
from ript_ray.config.experiment import Experiment, register
from ript_ray.config.serialization import SCHEMA
from ript_ray.data.contexts import held_out_requests, training_stream
from ript_ray.errors import CheckpointError
from ript_ray.evaluation.evaluate import EvaluationResult, evaluate
from ript_ray.rl.callbacks import TrainResult
from ript_ray.rl.protocols import Runtime
from ript_ray.rl.train import train
from ript_ray.runs import checkpoint
from ript_ray.runs.checkpoint import CheckpointClock, TrainingState
from ript_ray.runs.kept_groups import KeptGroups, KeptGroupsCleaner
from ript_ray.runs.killed import closing_killed_runs, closing_killed_runs_beside
from ript_ray.runs.lineage import demonstrations_behind
from ript_ray.runs.model_dir import initial_policy
from ript_ray.runs.preflight import require_start
from ript_ray.runs.provenance import differences, versions
from ript_ray.runs.recalling_runtime import RecallingRuntime
from ript_ray.runs.recorder import Recorder, success_metrics
from ript_ray.runs.rollout_log import RolloutLog
from ript_ray.runs.run_dir import RunDir, may_lead_elsewhere
from ript_ray.runs.run_logger import RunLogger
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.runs.validation import Validation
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.factory import describe, open_runtime, require_fit, session
from ript_ray.sft.train import train_supervised
from ript_ray.storage.atomic import atomic_write
from ript_ray.storage.reading import read_object
from ript_ray.tracking.console import View
from ript_ray.tracking.store import Origin
from ript_ray.types import RIPT, Progress, Version

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Results:
    """What an experiment found.

    Attributes:
        folder: The run's directory.
        experiment: What was learned.
        before: Held-out success before post-training; none where the run does not post-train.
        after: Held-out success at the end; none where the policy cannot act yet.
        train_result: How post-training ended, if there was any.
        tracking_error: What the trackers did not take, or none.
    """

    folder: Path
    experiment: Experiment
    before: EvaluationResult | None
    after: EvaluationResult | None
    train_result: TrainResult | None
    tracking_error: str | None


def run_experiment(
    experiment: Experiment,
    cluster: Cluster,
    *,
    runs: Path,
    view: View,
    label: str = "",
    base: Experiment | None = None,
    origin: Origin | None = None,
) -> Results:
    """Run an experiment from nothing to its results.

    Args:
        experiment: What is learned.
        cluster: Where.
        runs: Folder of the runs of all experiments.
        view: Shows the progress.
        label: A word at the end of the run's name, if any.
        base: The experiment as its file states it, if it has one: what was changed of it is noted in the run's folder.
        origin: Who started it with what, and where its metrics go; unless given, this process, and to MLflow.
    """
    register(type(experiment.policy), type(experiment.benchmark))
    changes = None if base is None else changed_options(base, experiment)  # with paths as they were typed
    experiment = _with_absolute_paths(experiment)
    start = require_start(experiment, cluster, runs)
    demonstrations = demonstrations_behind(experiment)
    with closing_killed_runs(runs), session(cluster):
        # Nothing is written before all that can be checked has been.
        folder = RunDir.create(runs, experiment, label, changes=changes, demonstrations=demonstrations)
        with folder.lock():
            (origin or Origin.here()).write(folder.path)
            logger.info("run folder %s", folder.path)
            return _run_stages(folder, start, None, cluster, view)


def resume_experiment(
    run: Path,
    cluster: Cluster,
    *,
    view_of: Callable[[Experiment], View],
    num_updates: int | None = None,
    strict: bool = False,
) -> Results:
    """Resume an interrupted run as if it had not been interrupted: at lag 0 the same weights, bit for bit.

    Args:
        run: The run's directory.
        cluster: Where; it may be another one than before.
        view_of: Makes the view that shows the progress.
        num_updates: Extend the run to this number of updates, more than it has; then it may have finished.
        strict: Refuse where the code, a package or the processor is not that of the run's beginning; else warn.

    Raises:
        CheckpointError: The run has finished and is not to be extended, or no checkpoint of it is valid.
        ConfigError: It cannot be extended, or versions differ and `strict` forbids it; nothing is changed.
        RunInUseError: It is still running.
    """
    folder = RunDir(run)
    run = folder.path  # what a link to the run leads to now
    with folder.lock():
        if folder.results.exists() and num_updates is None:
            raise CheckpointError(f"{run} has finished: there is nothing to resume; num-updates extends it")
        experiment = folder.experiment if num_updates is None else _extended(folder.experiment, num_updates)
        point = checkpoint.latest_valid(run) if checkpoint.has_checkpoints(run) else None
        if point is not None:
            experiment = replace(point.policy.experiment, num_updates=experiment.num_updates)
        require_fit(cluster, experiment.num_learners, experiment.policy)
        _compare_versions(folder, experiment, point.folder.name if point else "the start", strict=strict)
        if num_updates is not None:
            folder.extend(experiment, point.state.progress.update if point else 0)
        with view_of(experiment) as view, closing_killed_runs_beside(run), session(cluster):
            if point is None:
                logger.info("%s has no checkpoint: restarting it", folder.path)
                return _run_stages(folder, initial_policy(experiment), None, cluster, view)
            for reason in point.skipped:
                logger.warning("skipping a checkpoint: %s", reason)
            checkpoint.quarantine_newer(point.folder)
            logger.info("resuming from %s", point.folder)
            return _run_stages(folder, replace(point.policy, experiment=experiment), point.state, cluster, view)


def begun_run(runs: Path, experiment: Experiment, label: str) -> RunDir | None:
    """Return the newest run of an experiment and its seed that has a label; None if there is none.

    Args:
        runs: Folder of the runs of all experiments.
        experiment: What is learned.
        label: The word at the end of the run's name.

    Raises:
        ConfigError: There is no label, or the run was begun with other settings.
    """
    require(label != "", "--resume needs --label WORD, by which it finds the run")
    register(type(experiment.policy), type(experiment.benchmark))
    run = RunDir.find(runs, experiment, label)
    if run is None:
        return None
    begun = run.experiment
    if experiment.start_from and may_lead_elsewhere(experiment.start_from):
        experiment = replace(experiment, start_from=begun.start_from)  # to where it led then
    changes = changed_options(begun, _with_absolute_paths(experiment))
    advice = "repeat them, or give another --label"
    require(not changes, f"{run.path} was begun with other settings than {in_words(changes)}: {advice}")
    return run


def _extended(experiment: Experiment, num_updates: int) -> Experiment:
    require(RIPT in experiment.stages, f"num-updates: {experiment.name} does not post-train: it cannot be extended")
    require(
        num_updates > experiment.num_updates,
        f"num-updates must be more than the {experiment.num_updates} updates that the run has, not {num_updates}",
    )
    return replace(experiment, num_updates=num_updates)


def _compare_versions(folder: RunDir, experiment: Experiment, point: str, *, strict: bool) -> None:
    """Warn, or refuse if `strict`, where the run would go on with something else than it began with; record it."""
    now = versions(experiment.benchmark.packages)
    known = folder.versions
    changed = differences(known, now)
    text = ", ".join(f"{name} {change}" for name, change in changed.items()) or "what it began with is not known"
    is_same = bool(known) and not changed
    require(is_same or not strict, f"{folder.path} is not resumed, for it would not be the same run: {text}")
    if changed:
        logger.warning("changed since the run began, so the weights may differ in their last bits or more: %s", text)
    folder.record_resumption(point, now)


def _with_absolute_paths(experiment: Experiment) -> Experiment:
    """The same experiment, independent of the directory that it is resumed or replayed from."""

    def located(path: Path | None) -> Path | None:
        return path and path.absolute()

    source, policy = experiment.sampling.context_source, cast(Any, experiment.policy)
    files = {each.name: value for each in fields(policy) if isinstance(value := getattr(policy, each.name), Path)}
    return replace(
        experiment,
        policy=replace(policy, **{name: located(path) for name, path in files.items()}),
        start_from=experiment.start_from and experiment.start_from.resolve(),  # links lead elsewhere one day
        demos=replace(experiment.demos, folder=located(experiment.demos.folder)),
        sampling=replace(experiment.sampling, context_source=source if source == "demos" else located(source)),
    )


def _run_stages(
    folder: RunDir, policy: SavedPolicy, state: TrainingState | None, cluster: Cluster, view: View
) -> Results:
    """Run the experiment's stages, from `policy` and, if an earlier process has saved one, its training state."""
    experiment = policy.experiment
    before = after = train_result = None
    clock = CheckpointClock(cluster.checkpoint_minutes)
    atomic_write(folder.machine, json.dumps(describe(cluster), indent=2) + "\n")
    with RunLogger(folder, experiment, state) as run_logger:
        if state is None or state.stage != RIPT:
            policy, state = train_supervised(run_logger, policy, state, view=view, clock=clock), None
        if RIPT in experiment.stages:
            before, after, train_result = _PostTraining(run_logger, policy, state, view).run(cluster, clock)
            if train_result.exhausted is not None and not train_result.exhausted.is_success:
                run_logger.fail()
        else:
            after = _evaluate_supervised(run_logger, policy, cluster)
    return Results(folder.path, experiment, before, after, train_result, run_logger.tracking_error)


def _evaluate_supervised(run_logger: RunLogger, policy: SavedPolicy, cluster: Cluster) -> EvaluationResult | None:
    """Evaluate the policy of a run that ends with a supervised stage, unless it is not the last of them."""
    experiment, folder = policy.experiment, run_logger.folder
    last = experiment.stages[-1]
    result = None
    if last == experiment.sft.stages[-1]:
        logger.info("evaluating on held-out contexts")
        with open_runtime(policy.components(), cluster, with_learner=False) as runtime:
            result = evaluate(runtime, held_out_requests(experiment))
        number = checkpoint.number_of(checkpoint.find(folder.path))
        run_logger.log(last, number, success_metrics(result), kind="evaluation")
    run_logger.flush()
    content = {
        "schema": SCHEMA,
        "success": result.to_json() if result else None,
        "demonstrations": folder.demonstrations,
    }
    atomic_write(folder.results, json.dumps(content, indent=2) + "\n")
    return result


class _PostTraining:
    """The last stage: evaluate, post-train, evaluate again."""

    def __init__(self, run_logger: RunLogger, policy: SavedPolicy, state: TrainingState | None, view: View):
        self._run_logger = run_logger
        self._folder = run_logger.folder
        self._policy = policy
        self._state = state
        self._view = view
        self._experiment = policy.experiment
        self._held_out = held_out_requests(self._experiment)

    def run(self, cluster: Cluster, clock: CheckpointClock) -> tuple[EvaluationResult, EvaluationResult, TrainResult]:
        """Return success before and after, and how training ended."""
        experiment, folder, state = self._experiment, self._folder, self._state
        stream = training_stream(experiment)
        start = state.progress if state else Progress()
        weights = folder.weights if experiment.keep_weights else None
        with (
            Recorder(
                self._run_logger, self._policy, state, task_of=lambda index: stream.at(index).task, clock=clock
            ) as recorder,
            RolloutLog(folder.groups, weights, stream, start=start, keep_versions=experiment.keep_versions) as rollouts,
        ):
            logger.info("starting actors")
            kept = KeptGroups(folder.kept_groups.absolute())
            kept.remove_before(start.next_index)
            parts = self._policy.components()
            with open_runtime(
                replace(parts, keep_group=kept.save if cluster.keep_groups else None), cluster
            ) as runtime:
                if state is not None:
                    runtime.restore(Version(start.update), state.learner)
                before = self._read_before() or self._evaluate(runtime, recorder, "before RIPT")
                validation = Validation(runtime, recorder, experiment)
                validation.run()
                position = len(experiment.all_stages)
                size = f"{experiment.num_updates} updates on {runtime.num_actors} rollout actors"
                logger.info("stage %d: RIPT, %s", position, size)
                self._view.start_training(before, runtime, stream)
                lag = experiment.sampling.max_policy_lag
                recalling = RecallingRuntime(runtime, kept, max_policy_lag=lag)
                result = train(
                    recalling if cluster.keep_groups else runtime,
                    stream,
                    sampling=experiment.sampling,
                    num_updates=experiment.num_updates,
                    seed=experiment.seed,
                    # Log lines first: checkpoints follow from them. Kept groups last: checkpoints replace them.
                    callbacks=(rollouts, recorder, self._view, validation, KeptGroupsCleaner(kept, folder.checkpoint)),
                    start=start,
                )
                if recalling.num_recalled:
                    logger.info("groups that were not rolled out again: %d", recalling.num_recalled)
                recorder.on_end(result)
                validation.run(at_end=True)
                after = self._evaluate(runtime, recorder, "after RIPT", before) if recorder.num_updates else before
                recorder.write_results(before, after, result)
        shutil.rmtree(kept.folder, ignore_errors=True)
        return before, after, result

    def _evaluate(
        self, runtime: Runtime, recorder: Recorder, when: str, before: EvaluationResult | None = None
    ) -> EvaluationResult:
        logger.info("evaluating on held-out contexts, %s", when)
        result = evaluate(runtime, self._held_out)
        recorder.on_evaluation(result, before)
        logger.info("success %.1f%% %s", 100 * result.overall.success_rate, when)
        return result

    def _read_before(self) -> EvaluationResult | None:
        """The first evaluation, where an earlier process has made it.

        Raises:
            CheckpointError: It is damaged, or missing though updates have followed it: it cannot be made again.
        """
        path = self._folder.before
        if path.exists():
            try:
                return EvaluationResult.from_json(read_object(path))
            except ValueError as error:
                raise CheckpointError(f"{path} cannot be read: {error!r}") from error
        if self._state is not None and self._state.progress.update > 0:
            raise CheckpointError(f"{path} is missing: success before RIPT is not known any more")
        return None
