"""One whole experiment: demonstrations, supervised stages, measure, post-train, measure again."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ript_ray import checkpoint
from ript_ray.build import PolicySource, new_policy, runtime_parts
from ript_ray.checkpoint import Training
from ript_ray.config import Experiment
from ript_ray.contexts import ContextStream, draw_contexts
from ript_ray.errors import CheckpointError
from ript_ray.evaluate import EvaluationResult, evaluate
from ript_ray.recorder import Recorder
from ript_ray.run_folder import RunFolder
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.open import open_runtime, session
from ript_ray.seeding import Purpose, torch_seed_of
from ript_ray.sft.demonstrations import make_windows, record_demonstrations
from ript_ray.sft.stages import train_autoencoder, train_prior
from ript_ray.train import Outcome, train
from ript_ray.types import Context, Version
from ript_ray.view import View


@dataclass(frozen=True)
class Results:
    """What an experiment found.

    Attributes:
        folder: The run's folder.
        before: Held-out success of the supervised policy.
        after: Held-out success after post-training.
        outcome: How training ended.
        tracking_problem: What went wrong with the tracking store, or none.
    """

    folder: Path
    before: EvaluationResult
    after: EvaluationResult
    outcome: Outcome
    tracking_problem: str | None


def run_experiment(experiment: Experiment, cluster: Cluster, *, runs: Path, view: View) -> Results:
    """Run an experiment from nothing to its results.

    Args:
        experiment: What is learned.
        cluster: Where.
        runs: Folder that collects the runs of all experiments.
        view: What is shown meanwhile.
    """
    with session(cluster):
        folder = RunFolder.create(runs, experiment)
        with folder.lock():
            view.stage(f"run folder {folder.path}")
            return _post_train(folder, train_supervised(experiment, view), None, cluster, view)


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
        newest, passed_over = checkpoint.newest_resumable(run)
        source, training = checkpoint.load(newest), checkpoint.load_training(newest)
        with view_of(source.experiment) as view, session(cluster):
            for problem in passed_over:
                view.stage(f"passed over: {problem}")
            checkpoint.set_aside_later(newest)
            view.stage(f"going on from {newest}")
            return _post_train(folder, source, training, cluster, view), source.experiment


def _post_train(
    folder: RunFolder, source: PolicySource, training: Training | None, cluster: Cluster, view: View
) -> Results:
    """Measure, post-train, measure again; from where `training` stands, if anywhere."""
    experiment = source.experiment
    contexts, held_out = training_contexts(experiment), held_out_contexts(experiment)
    assert set(contexts).isdisjoint(held_out), "a policy must not be measured on what it was trained on"

    def measure(when: str) -> EvaluationResult:
        view.stage(f"measuring success on held-out contexts, {when}")
        result = evaluate(runtime, held_out, batch_size=experiment.evaluation.batch_size, seed=experiment.seed)
        recorder.on_evaluation(result)
        view.stage(f"success {result.overall.success_rate:.1%} {when}")
        return result

    with Recorder(folder, source, training, view.stage) as recorder:
        view.stage("starting actors")
        with open_runtime(runtime_parts(source), cluster, report=view.stage) as runtime:
            if training is not None:
                runtime.restore(Version(training.progress.update), training.learner)
            before = _read_before(folder, training) or measure("before RIPT")
            view.stage(f"stage 3: RIPT, {experiment.num_updates} updates on {runtime.num_actors} rollout actors")
            outcome = train(
                runtime,
                ContextStream(contexts, experiment.seed),
                sampling=experiment.sampling,
                num_updates=experiment.num_updates,
                seed=experiment.seed,
                observers=(recorder, view),  # what is shown has been written down
                start=training.progress if training else None,
            )
            recorder.on_end(outcome)
            after = measure("after RIPT") if recorder.num_updates else before
            recorder.write_results(before, after, outcome)
    return Results(folder.path, before, after, outcome, recorder.tracking_problem)


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


def train_supervised(experiment: Experiment, view: View) -> PolicySource:
    """Record demonstrations and train the policy on them: what RIPT starts from."""
    torch.set_num_threads(experiment.learner_threads)
    demos, sft, seed = experiment.demos, experiment.sft, experiment.seed
    view.stage(f"recording {demos.num_per_task} demonstration(s) of each of {len(experiment.tasks)} tasks")
    demonstrations = record_demonstrations(
        experiment.benchmark, experiment.tasks, settings=demos, max_steps=experiment.max_steps, seed=seed
    )
    windows = make_windows(demonstrations, experiment.policy.chunk_length)
    policy = new_policy(experiment)
    policy.fit_standardizer(windows.observations, min_scale=sft.min_state_scale)
    view.stage(f"stage 1: skill autoencoder on {len(windows.instructions)} windows")
    error = train_autoencoder(
        policy,
        windows,
        stage=sft.autoencoder,
        seed=torch_seed_of(seed, Purpose.AUTOENCODER_STAGE),
        progress=functools.partial(view.on_step, "autoencoder", sft.autoencoder.num_steps),
    )
    view.stage(f"stage 2: supervised prior (mean action error of stage 1: {error:.3f})")
    train_prior(
        policy,
        windows,
        stage=sft.prior,
        seed=torch_seed_of(seed, Purpose.PRIOR_STAGE),
        progress=functools.partial(view.on_step, "prior", sft.prior.num_steps),
    )
    return PolicySource(experiment, policy.state_arrays())


def held_out_contexts(experiment: Experiment) -> tuple[Context, ...]:
    """The contexts an experiment is measured on; training never draws them."""
    return draw_contexts(
        experiment.benchmark,
        experiment.tasks,
        num_per_task=experiment.evaluation.contexts_per_task,
        seed=experiment.seed,
        purpose=Purpose.HELD_OUT_CONTEXTS,
    )


def training_contexts(experiment: Experiment) -> tuple[Context, ...]:
    """The context dataset that RIPT draws from."""
    return draw_contexts(
        experiment.benchmark,
        experiment.tasks,
        num_per_task=experiment.sampling.contexts_per_task,
        seed=experiment.seed,
        purpose=Purpose.TRAINING_CONTEXTS,
    )
