"""One whole experiment: demonstrations, supervised stages, measure, post-train, measure again."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ript_ray.build import PolicySource, new_policy, runtime_parts
from ript_ray.config import Experiment
from ript_ray.contexts import ContextStream, draw_contexts
from ript_ray.evaluate import EvaluationResult, evaluate
from ript_ray.recorder import Recorder
from ript_ray.run_folder import RunFolder
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.on_ray import RayRuntime
from ript_ray.seeding import Purpose, torch_seed_of
from ript_ray.sft.demonstrations import make_windows, record_demonstrations
from ript_ray.sft.stages import train_autoencoder, train_prior
from ript_ray.train import Outcome, train
from ript_ray.types import Context
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
    folder = RunFolder(runs, experiment)
    view.stage(f"run folder {folder.path}")
    source = train_supervised(experiment, view)
    view.stage("starting Ray")
    runtime = RayRuntime(runtime_parts(source), cluster)
    try:
        recorder = Recorder(folder, source)
        measure = functools.partial(
            evaluate,
            runtime,
            held_out_contexts(experiment),
            batch_size=experiment.evaluation.batch_size,
            seed=experiment.seed,
        )
        before = _measure(measure, recorder, view, "before RIPT")
        view.stage(f"stage 3: RIPT, {experiment.num_updates} updates on {runtime.num_actors} rollout actors")
        outcome = train(
            runtime,
            ContextStream(training_contexts(experiment), experiment.seed),
            sampling=experiment.sampling,
            num_updates=experiment.num_updates,
            seed=experiment.seed,
            observers=(view, recorder),
        )
        after = _measure(measure, recorder, view, "after RIPT") if recorder.num_updates else before
        problem = recorder.finish(before, after, outcome)
    finally:
        runtime.close()
    return Results(folder.path, before, after, outcome, problem)


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
    train_autoencoder(
        policy,
        windows,
        stage=sft.autoencoder,
        seed=torch_seed_of(seed, Purpose.AUTOENCODER_STAGE),
        progress=functools.partial(view.on_step, "autoencoder", sft.autoencoder.num_steps),
    )
    view.stage("stage 2: supervised prior")
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


def _measure(measure: Callable[[], EvaluationResult], recorder: Recorder, view: View, when: str) -> EvaluationResult:
    view.stage(f"measuring success on held-out contexts, {when}")
    result = measure()
    recorder.on_evaluation(result)
    view.stage(f"success {result.overall.success_rate:.1%} {when}")
    return result
