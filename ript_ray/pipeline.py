"""One whole experiment: demonstrations, supervised stages, measure, post-train, measure again."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ript_ray.config.experiment import Experiment
from ript_ray.config.serialization import experiment_from_json
from ript_ray.data.contexts import held_out_contexts, training_contexts
from ript_ray.errors import CheckpointError, ConfigError
from ript_ray.evaluation.evaluate import EvaluationResult, evaluate
from ript_ray.rl.callbacks import TrainResult
from ript_ray.rl.context_stream import ContextStream
from ript_ray.rl.train import train
from ript_ray.runs import checkpoint
from ript_ray.runs.checkpoint import TrainingState
from ript_ray.runs.recorder import Recorder, success_metrics
from ript_ray.runs.rollout_log import RolloutLog
from ript_ray.runs.run_dir import RunDir
from ript_ray.runs.run_logger import RunLogger
from ript_ray.runs.saved_policy import SavedPolicy, components_of
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.factory import open_runtime, session
from ript_ray.sft.train import require_start, train_supervised
from ript_ray.storage.atomic import atomic_write
from ript_ray.tracking.console import View
from ript_ray.types import Progress, Stage, Version

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Results:
    """What an experiment found.

    Attributes:
        folder: The run's folder.
        before: Held-out success before post-training; none where the run does not post-train.
        after: Held-out success at the end; none after the autoencoder alone, which cannot act.
        outcome: How post-training ended, if there was any.
        tracking_error: What went wrong with the tracking store, or none.
    """

    folder: Path
    before: EvaluationResult | None
    after: EvaluationResult | None
    train_result: TrainResult | None
    tracking_error: str | None


def run_experiment(experiment: Experiment, cluster: Cluster, *, runs: Path, view: View) -> Results:
    """Run an experiment from nothing to its results.

    Args:
        experiment: What is learned.
        cluster: Where.
        runs: Folder that collects the runs of all experiments.
        view: What is shown meanwhile.
    """
    experiment = _with_absolute_paths(experiment)
    require_start(experiment)
    _require_fresh_contexts(experiment)
    with session(cluster):
        folder = RunDir.create(runs, experiment)
        with folder.lock():
            logger.info("run folder %s", folder.path)
            return _run_stages(folder, experiment, None, cluster, view)


def resume_experiment(
    run: Path, cluster: Cluster, *, view_of: Callable[[Experiment], View]
) -> tuple[Results, Experiment]:
    """Go on with a run that was interrupted, as if it had not been: the same weights, bit for bit.

    Args:
        run: The run's folder.
        cluster: Where; it may be another one than before.
        view_of: Makes what is shown meanwhile.

    Returns:
        What it found, and the experiment, which is as it was when the run began.

    Raises:
        CheckpointError: The run has finished, or no checkpoint of it is valid.
        RunInUseError: It is going on.
    """
    folder = RunDir(run)
    with folder.lock():
        if folder.results.exists():
            raise CheckpointError(f"{run} has finished: there is nothing to resume")
        if not (run / "checkpoints").exists():
            return _restart(folder, cluster, view_of)
        newest, skipped = checkpoint.latest_valid(run)
        source, training = checkpoint.load(newest), checkpoint.load_training(newest)
        with view_of(source.experiment) as view, session(cluster):
            for reason in skipped:
                logger.warning("skipping checkpoint: %s", reason)
            checkpoint.quarantine_newer(newest)
            logger.info("resuming from %s", newest)
            return _run_stages(folder, source.experiment, (source, training), cluster, view), source.experiment


def _restart(folder: RunDir, cluster: Cluster, view_of: Callable[[Experiment], View]) -> tuple[Results, Experiment]:
    """Run an experiment that was interrupted before it had saved anything."""
    experiment = experiment_from_json(folder.config)
    with view_of(experiment) as view, session(cluster):
        logger.warning("%s: no checkpoint found, restarting", folder.path)
        return _run_stages(folder, experiment, None, cluster, view), experiment


def _with_absolute_paths(experiment: Experiment) -> Experiment:
    """The same experiment, wherever it is resumed or replayed from."""

    def located(path: Path | None) -> Path | None:
        return path and path.absolute()

    return replace(
        experiment,
        start_from=located(experiment.start_from),
        demos=replace(experiment.demos, folder=located(experiment.demos.folder)),
        sampling=replace(experiment.sampling, context_source=located(experiment.sampling.context_source)),
    )


def _run_stages(
    folder: RunDir,
    experiment: Experiment,
    standing: tuple[SavedPolicy, TrainingState] | None,
    cluster: Cluster,
    view: View,
) -> Results:
    """Run the experiment's stages, from where `standing` says, if anywhere."""
    source, training = standing or (None, None)
    before = after = train_result = None
    with RunLogger(folder, experiment, training) as run_logger:
        if source is None or training is None or training.stage is not Stage.RIPT:
            source, training = train_supervised(run_logger, experiment, standing, view), None
        if Stage.RIPT in experiment.stages:
            before, after, train_result = _post_train(run_logger, source, training, cluster=cluster, view=view)
        else:
            after = _evaluate_supervised(run_logger, source, cluster)
    return Results(folder.path, before, after, train_result, run_logger.tracking_error)


def _evaluate_supervised(run_logger: RunLogger, source: SavedPolicy, cluster: Cluster) -> EvaluationResult | None:
    """Measure the policy of a run that ends with a supervised stage, unless it cannot act yet."""
    experiment, last, folder = source.experiment, source.experiment.stages[-1], run_logger.folder
    result = None
    if last is Stage.PRIOR:
        logger.info("measuring success on held-out contexts")
        with open_runtime(components_of(source), cluster, with_learner=False) as runtime:
            result = evaluate(
                runtime,
                held_out_contexts(experiment),
                batch_size=experiment.evaluation.batch_size,
                seed=experiment.seed,
            )
        run_logger.log(last, checkpoint.number_of(checkpoint.find(folder.path)), success_metrics(result))
    run_logger.flush()
    atomic_write(folder.results, json.dumps({"success": result.to_json() if result else None}, indent=2) + "\n")
    run_logger.log_artifacts([folder.results])
    return result


def _post_train(
    run_logger: RunLogger, source: SavedPolicy, training: TrainingState | None, *, cluster: Cluster, view: View
) -> tuple[EvaluationResult, EvaluationResult, TrainResult]:
    """Measure, post-train, measure again; from where `training` stands, if anywhere."""
    experiment, folder = source.experiment, run_logger.folder
    contexts, held_out = training_contexts(experiment), held_out_contexts(experiment)

    def measure(when: str) -> EvaluationResult:
        logger.info("measuring success on held-out contexts, %s", when)
        result = evaluate(runtime, held_out, batch_size=experiment.evaluation.batch_size, seed=experiment.seed)
        recorder.on_evaluation(result)
        logger.info("success %.1f%% %s", 100 * result.overall.success_rate, when)
        return result

    stream = ContextStream(contexts, experiment.seed)
    start = training.progress if training else Progress()
    kept_weights = folder.weights if experiment.keep_weights else None
    with (
        Recorder(run_logger, source, training) as recorder,
        RolloutLog(folder.groups, kept_weights, stream, start=start) as rollouts,
    ):
        logger.info("starting actors")
        with open_runtime(components_of(source), cluster) as runtime:
            if training is not None:
                runtime.restore(Version(training.progress.update), training.learner)
            before = _read_before(folder, training) or measure("before RIPT")
            logger.info("stage 3: RIPT, %d updates on %d rollout actors", experiment.num_updates, runtime.num_actors)
            train_result = train(
                runtime,
                stream,
                sampling=experiment.sampling,
                num_updates=experiment.num_updates,
                seed=experiment.seed,
                callbacks=(rollouts, recorder, view),  # what is saved follows from lines on the disk, and is shown last
                start=start,
            )
            recorder.on_end(train_result)
            after = measure("after RIPT") if recorder.num_updates else before
            recorder.write_results(before, after, train_result)
    return before, after, train_result


def _read_before(folder: RunDir, training: TrainingState | None) -> EvaluationResult | None:
    """The first measurement, where an earlier process has taken it.

    Raises:
        CheckpointError: It is damaged, or gone though updates have followed it: it cannot be taken again.
    """
    if folder.before.exists():
        try:
            return EvaluationResult.from_json(json.loads(folder.before.read_text()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder.before} cannot be read: {error!r}") from error
    if training is not None and training.progress.update > 0:
        raise CheckpointError(f"{folder.before} is missing: success before RIPT is not known any more")
    return None


def _require_fresh_contexts(experiment: Experiment) -> None:
    """Check, before anything is written, that contexts from files can be used; those from seeds always can.

    Raises:
        RiptError: They are missing, damaged, too few, or among those that the policy will be measured on.
    """
    if experiment.sampling.context_source is None or Stage.RIPT not in experiment.stages:
        return
    if shared := set(training_contexts(experiment)) & set(held_out_contexts(experiment)):
        raise ConfigError(
            f"sampling.context-source: {len(shared)} of its contexts are among the held-out ones of seed "
            f"{experiment.seed}: a policy must not be measured on what it was trained on"
        )
