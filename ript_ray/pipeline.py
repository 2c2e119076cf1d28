"""One whole experiment: demonstrations, supervised stages, measure, post-train, measure again."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ript_ray.config.experiment import Experiment
from ript_ray.config.serialization import experiment_from_json
from ript_ray.data.contexts import held_out_contexts, training_contexts
from ript_ray.errors import CheckpointError, ConfigError
from ript_ray.evaluation.evaluate import EvaluationResult, evaluate
from ript_ray.rl.callbacks import Outcome
from ript_ray.rl.context_stream import ContextStream
from ript_ray.rl.train import train
from ript_ray.runs import checkpoint
from ript_ray.runs.checkpoint import Training
from ript_ray.runs.recorder import Recorder, success_metrics
from ript_ray.runs.rollout_log import RolloutLog
from ript_ray.runs.run_dir import RunFolder
from ript_ray.runs.run_logger import Books
from ript_ray.runs.saved_policy import PolicySource, runtime_parts
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.factory import open_runtime, session
from ript_ray.sft.train import require_start, train_supervised
from ript_ray.storage.atomic import write_whole
from ript_ray.tracking.console import View
from ript_ray.types import Progress, Stage, Version


@dataclass(frozen=True)
class Results:
    """What an experiment found.

    Attributes:
        folder: The run's folder.
        before: Held-out success before post-training; none where the run does not post-train.
        after: Held-out success at the end; none after the autoencoder alone, which cannot act.
        outcome: How post-training ended, if there was any.
        tracking_problem: What went wrong with the tracking store, or none.
    """

    folder: Path
    before: EvaluationResult | None
    after: EvaluationResult | None
    outcome: Outcome | None
    tracking_problem: str | None


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
        folder = RunFolder.create(runs, experiment)
        with folder.lock():
            view.stage(f"run folder {folder.path}")
            return _go_on(folder, experiment, None, cluster, view)


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
    folder = RunFolder(run)
    with folder.lock():
        if folder.results.exists():
            raise CheckpointError(f"{run} has finished: there is nothing to resume")
        if not (run / "checkpoints").exists():
            return _begin_again(folder, cluster, view_of)
        newest, passed_over = checkpoint.newest_resumable(run)
        source, training = checkpoint.load(newest), checkpoint.load_training(newest)
        with view_of(source.experiment) as view, session(cluster):
            for problem in passed_over:
                view.stage(f"passed over: {problem}")
            checkpoint.set_aside_later(newest)
            view.stage(f"going on from {newest}")
            return _go_on(folder, source.experiment, (source, training), cluster, view), source.experiment


def _begin_again(
    folder: RunFolder, cluster: Cluster, view_of: Callable[[Experiment], View]
) -> tuple[Results, Experiment]:
    """Run an experiment that was interrupted before it had saved anything."""
    experiment = experiment_from_json(folder.config)
    with view_of(experiment) as view, session(cluster):
        view.stage(f"{folder.path} had saved nothing yet: beginning again")
        return _go_on(folder, experiment, None, cluster, view), experiment


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


def _go_on(
    folder: RunFolder,
    experiment: Experiment,
    standing: tuple[PolicySource, Training] | None,
    cluster: Cluster,
    view: View,
) -> Results:
    """Run the experiment's stages, from where `standing` says, if anywhere."""
    source, training = standing or (None, None)
    before = after = outcome = None
    with Books(folder, experiment, training, view.stage) as books:
        if source is None or training is None or training.stage is not Stage.RIPT:
            source, training = train_supervised(books, experiment, standing, view), None
        if Stage.RIPT in experiment.stages:
            before, after, outcome = _post_train(books, source, training, cluster=cluster, view=view)
        else:
            after = _measure_supervised(books, source, cluster, view)
    return Results(folder.path, before, after, outcome, books.tracking_problem)


def _measure_supervised(books: Books, source: PolicySource, cluster: Cluster, view: View) -> EvaluationResult | None:
    """Measure the policy of a run that ends with a supervised stage, unless it cannot act yet."""
    experiment, last, folder = source.experiment, source.experiment.stages[-1], books.folder
    result = None
    if last is Stage.PRIOR:
        view.stage("measuring success on held-out contexts")
        with open_runtime(runtime_parts(source), cluster, with_learner=False, report=view.stage) as runtime:
            result = evaluate(
                runtime,
                held_out_contexts(experiment),
                batch_size=experiment.evaluation.batch_size,
                seed=experiment.seed,
            )
        books.log(last, checkpoint.number_of(checkpoint.find(folder.path)), success_metrics(result))
    books.require_complete()
    write_whole(folder.results, json.dumps({"success": result.to_json() if result else None}, indent=2) + "\n")
    books.publish([folder.results])
    return result


def _post_train(
    books: Books, source: PolicySource, training: Training | None, *, cluster: Cluster, view: View
) -> tuple[EvaluationResult, EvaluationResult, Outcome]:
    """Measure, post-train, measure again; from where `training` stands, if anywhere."""
    experiment, folder = source.experiment, books.folder
    contexts, held_out = training_contexts(experiment), held_out_contexts(experiment)

    def measure(when: str) -> EvaluationResult:
        view.stage(f"measuring success on held-out contexts, {when}")
        result = evaluate(runtime, held_out, batch_size=experiment.evaluation.batch_size, seed=experiment.seed)
        recorder.on_evaluation(result)
        view.stage(f"success {result.overall.success_rate:.1%} {when}")
        return result

    stream = ContextStream(contexts, experiment.seed)
    start = training.progress if training else Progress()
    kept_weights = folder.weights if experiment.keep_weights else None
    with (
        Recorder(books, source, training) as recorder,
        RolloutLog(folder.groups, kept_weights, stream, start=start, announce=view.stage) as rollouts,
    ):
        view.stage("starting actors")
        with open_runtime(runtime_parts(source), cluster, report=view.stage) as runtime:
            if training is not None:
                runtime.restore(Version(training.progress.update), training.learner)
            before = _read_before(folder, training) or measure("before RIPT")
            view.stage(f"stage 3: RIPT, {experiment.num_updates} updates on {runtime.num_actors} rollout actors")
            outcome = train(
                runtime,
                stream,
                sampling=experiment.sampling,
                num_updates=experiment.num_updates,
                seed=experiment.seed,
                observers=(rollouts, recorder, view),  # what is saved follows from lines on the disk, and is shown last
                start=start,
            )
            recorder.on_end(outcome)
            after = measure("after RIPT") if recorder.num_updates else before
            recorder.write_results(before, after, outcome)
    return before, after, outcome


def _read_before(folder: RunFolder, training: Training | None) -> EvaluationResult | None:
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
