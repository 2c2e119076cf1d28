"""The supervised stages of a run: what RIPT starts from. They can stop after any step and go on to the same bits."""

import json
import logging
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ript_ray.checks import require
from ript_ray.config.experiment import Experiment
from ript_ray.data.dataset import SupervisedDataset, load_dataset
from ript_ray.errors import CheckpointError, StorageError
from ript_ray.policies.quest.config import QuestConfig
from ript_ray.policies.quest.policy import QuestPolicy
from ript_ray.runs import checkpoint
from ript_ray.runs.checkpoint import TrainingState
from ript_ray.runs.model_dir import load_start
from ript_ray.runs.run_logger import RunLogger
from ript_ray.runs.saved_policy import SavedPolicy, new_policy
from ript_ray.seeding import Purpose, torch_seed_of
from ript_ray.sft.quest import begin_stage, evaluate_stage
from ript_ray.sft.trainer import SupervisedTrainer
from ript_ray.storage.atomic import atomic_write
from ript_ray.tracking.console import View
from ript_ray.types import Progress, Stage

logger = logging.getLogger(__name__)

SEMANTIC_FIELDS = ("cameras", "sensors", "standardize", "task_input", "instructions", "fsq_levels", "chunk_length")
"""Settings that change what weights mean, though not always their shapes."""

NUM_POINTS = 200
"""Points of a stage's loss curve, about."""

NUM_KEPT = 2
"""Checkpoints of a stage under way that are kept, the newest ones; of one that has ended, the last."""

SEEDS = {Stage.AUTOENCODER: Purpose.AUTOENCODER_STAGE, Stage.PRIOR: Purpose.PRIOR_STAGE}

WORDS = {Stage.AUTOENCODER: "stage 1: skill autoencoder", Stage.PRIOR: "stage 2: supervised prior"}
UNITS = {Stage.AUTOENCODER: "mean action error", Stage.PRIOR: "nats per token"}


def train_supervised(
    run_logger: RunLogger, experiment: Experiment, standing: tuple[SavedPolicy, TrainingState] | None, view: View
) -> SavedPolicy:
    """Train the experiment's supervised stages, from where `standing` says, if anywhere.

    Args:
        run_logger: The run's books; checkpoints and each stage's errors go to their folder.
        experiment: What is learned.
        standing: Weights and state of an interrupted stage, or none.
        view: What is shown meanwhile.

    Returns:
        The policy after the last of them; without supervised stages, the one that the experiment starts from.

    Raises:
        RiptError: Demonstrations or the policy to start from are missing or do not fit, a loss is not finite, or the
            disk does not take a checkpoint.
    """
    torch.set_num_threads(experiment.learner_threads)
    policy, training = _policy_to_start_from(experiment, standing)
    stages = [stage for stage in experiment.stages if stage is not Stage.RIPT]
    if training is not None:
        stages = [stage for stage in stages if stage.place >= training.stage.place]
    if standing is None and experiment.start_from is not None:
        logger.info("starting from %s", experiment.start_from)
    if stages:
        demos, looks = experiment.demos, experiment.policy
        if stages == [Stage.AUTOENCODER] and looks.sensors:
            looks = replace(looks, cameras=())  # it sees actions alone
        told = f"reading from {demos.folder}" if demos.folder else "recording"
        logger.info("%s: %d demonstration(s) of each of %d tasks", told, demos.num_per_task, len(experiment.tasks))
        data = load_dataset(
            experiment.benchmark,
            experiment.tasks,
            settings=demos,
            policy=looks,
            max_steps=experiment.max_steps,
            seed=experiment.seed,
        )
        if training is None:
            seen = {name: np.asarray(data.training.observations[name]) for name in experiment.policy.sensors}
            policy.fit_standardizer(seen, min_scale=experiment.sft.min_state_scale)
        for stage in stages:
            _StageRun(run_logger, experiment, stage, view).run(policy, data, training)
            training = None
    return SavedPolicy(experiment, policy.state_arrays())


def _policy_to_start_from(
    experiment: Experiment, standing: tuple[SavedPolicy, TrainingState] | None
) -> tuple[QuestPolicy, TrainingState | None]:
    if standing is not None:
        source, training = standing
        return source(), training
    policy = new_policy(experiment)
    if experiment.start_from is not None:
        settings, arrays = load_start(experiment.start_from, first=experiment.stages[0])
        _require_same_meaning(settings, experiment.policy, experiment.start_from)
        policy.load_state_arrays(arrays)
    return policy, None


def _require_same_meaning(found: QuestConfig, wanted: QuestConfig, where: Path) -> None:
    """Check what shapes do not show: weights that fit would mean something else.

    Raises:
        CheckpointError: A setting differs; the message names it.
    """
    for name in SEMANTIC_FIELDS:
        here, there = getattr(wanted, name), getattr(found, name)
        if here != there:
            raise CheckpointError(f"{where} was trained with policy.{name.replace('_', '-')} {there}, not {here}")


def require_start(experiment: Experiment) -> None:
    """Check, before anything is written, that there is a policy to start from where one is needed.

    Raises:
        RiptError: None is named, or it is missing, damaged, or does not fit the experiment.
    """
    first = experiment.stages[0]
    require(
        first is Stage.AUTOENCODER or experiment.start_from is not None,
        f"start-from must name what the stage {first} starts from: a model folder, a checkpoint, or a run's folder",
    )
    _policy_to_start_from(experiment, None)


class _StageRun:
    """One stage: its steps, its loss curve, its checkpoints."""

    def __init__(self, run_logger: RunLogger, experiment: Experiment, stage: Stage, view: View):
        self._folder = run_logger.folder
        self._books = run_logger
        self._experiment = experiment
        self._stage = stage
        self._view = view
        sft = experiment.sft
        self._settings = sft.autoencoder if stage is Stage.AUTOENCODER else sft.prior

    def run(self, policy: QuestPolicy, data: SupervisedDataset, training: TrainingState | None) -> None:
        """Train the stage in the policy, on from `training` if there is one; at the end the policy is ready to act."""
        stage = self._stage
        fitting = begin_stage(
            stage,
            policy,
            data.training,
            sft=self._experiment.sft,
            seed=torch_seed_of(self._experiment.seed, SEEDS[stage]),
        )
        fingerprint = _fingerprint(data)
        if training is None:
            self._save(policy, fitting, fingerprint)
        else:
            before = {name: training.totals.get(name) for name in fingerprint}
            if before != fingerprint:
                raise CheckpointError(
                    f"the demonstrations are not those that {self._folder.path} was training on: they have "
                    f"{fingerprint}, not {before}"
                )
            fitting.restore(training.step, training.learner)
        if fitting.step == fitting.num_steps:
            return
        logger.info("%s on %d windows, %d steps", WORDS[stage], len(data.training.instructions), fitting.num_steps)
        policy.train()
        self._take_steps(fitting, policy, data, fingerprint)
        policy.eval()

    def _take_steps(
        self, fitting: SupervisedTrainer, policy: QuestPolicy, data: SupervisedDataset, fingerprint: dict[str, float]
    ) -> None:
        every = max(1, fitting.num_steps // NUM_POINTS)
        losses: list[float] = []
        save_is_due = False
        for loss in fitting.steps():
            losses.append(loss)
            self._view.on_step(self._stage, fitting.num_steps, fitting.step, loss)
            at_end = fitting.step == fitting.num_steps
            is_due = at_end or fitting.step % self._settings.checkpoint_every == 0
            save_is_due |= is_due
            if is_due or fitting.step % every == 0:
                errors = self._measure(policy, data, at_end=at_end) if is_due else {}
                figures = {"loss": float(np.mean(losses)), **errors}
                named = {f"{self._stage}/{name}": value for name, value in figures.items()}
                self._books.log(self._stage, fitting.step, named)
                losses.clear()
                save_is_due = save_is_due and not self._is_saved(policy, fitting, fingerprint)

    def _is_saved(self, policy: QuestPolicy, fitting: SupervisedTrainer, fingerprint: dict[str, float]) -> bool:
        """Save; a disk that takes nothing for a while ends a stage only at its end."""
        try:
            self._save(policy, fitting, fingerprint)
        except StorageError as error:
            if fitting.step == fitting.num_steps:
                raise
            logger.warning("%s; trying again with the next point", error)
            return False
        return True

    def _measure(self, policy: QuestPolicy, data: SupervisedDataset, *, at_end: bool) -> dict[str, float]:
        """The stage's error on what is held out, if anything is; at its end on what it was trained on, too."""
        parts = {"training": data.training if at_end else None, "held out": data.held_out}
        found = {name: evaluate_stage(self._stage, policy, part) for name, part in parts.items() if part is not None}
        errors = {f"{name.replace(' ', '_')}_error": error for name, error in found.items()}
        if at_end:
            told = ", ".join(f"{error:.3f} ({name})" for name, error in found.items())
            logger.info("%s: %s", UNITS[self._stage], told)
            atomic_write(self._folder.path / f"{self._stage}.json", json.dumps(errors, indent=2) + "\n")
        return errors

    def _save(self, policy: QuestPolicy, fitting: SupervisedTrainer, fingerprint: dict[str, float]) -> None:
        """Save a checkpoint, and delete older ones: the end of the stage is what counts."""
        stage, source = self._stage, SavedPolicy(self._experiment, policy.state_arrays())
        totals = {"wall_s": self._books.wall_s, **fingerprint}
        path = self._folder.checkpoint(fitting.step, stage)
        checkpoint.save(path, source, TrainingState(Progress(), totals, fitting.state(), stage, fitting.step))
        saved = [path for path in checkpoint.saved_in(self._folder.path) if path.name.startswith(stage)]
        for old in saved[: -1 if fitting.step == fitting.num_steps else -NUM_KEPT]:
            shutil.rmtree(old, ignore_errors=True)


def _fingerprint(data: SupervisedDataset) -> dict[str, float]:
    """Tells demonstrations from others, by their actions."""
    chunks = data.training.chunks_WCA
    return {"num_windows": float(len(chunks)), "crc32_of_chunks": float(zlib.crc32(chunks.tobytes()))}
