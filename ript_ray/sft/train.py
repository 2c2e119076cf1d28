"""The supervised stages of a run, before post-training. Each resumes exactly after any step."""

import contextlib
import json
import logging
import zlib
from collections.abc import Mapping

import numpy as np
import torch

from ript_ray.config.experiment import Experiment
from ript_ray.data.dataset import SupervisedDataset, load_dataset, read_cameras
from ript_ray.errors import CheckpointError, StorageError
from ript_ray.policies.base import Policy
from ript_ray.policies.supervised import SupervisedTask, Windows
from ript_ray.runs import checkpoint
from ript_ray.runs.checkpoint import CheckpointClock, RunTotals, TrainingState
from ript_ray.runs.retention import delete_checkpoint
from ript_ray.runs.run_logger import RunLogger
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.seeding import torch_seed_of
from ript_ray.sft.trainer import SupervisedTrainer
from ript_ray.storage.atomic import atomic_write, os_errors_as_storage_error
from ript_ray.tracking.console import View
from ript_ray.tracking.metrics_log import read_metrics
from ript_ray.tracking.plot import plot_stage
from ript_ray.types import Progress

NUM_POINTS = 200
"""Approximate number of points of a stage's loss curve."""

NUM_KEPT = 2
"""Checkpoints kept of a stage in progress; of a finished stage, only the last is kept."""

NUM_FINGERPRINTED = 256
"""Windows, evenly spaced, whose observations are part of the fingerprint of the demonstrations."""

logger = logging.getLogger(__name__)


def train_supervised(
    run_logger: RunLogger, start: SavedPolicy, state: TrainingState | None, *, view: View, clock: CheckpointClock
) -> SavedPolicy:
    """Train the experiment's supervised stages.

    Args:
        run_logger: The run; checkpoints and each stage's errors go to its directory.
        start: The policy to start from.
        state: Where an earlier process stopped in one of these stages, or none; `start` is the policy of that moment.
        view: Shows the progress.
        clock: Tells when a checkpoint is due that a stage's `checkpoint_every` does not ask for.

    Returns:
        The policy after the last stage; without supervised stages, the one to start from.

    Raises:
        RiptError: Demonstrations are missing or do not fit, a loss is not finite, or a checkpoint cannot be written.
    """
    experiment = start.experiment
    torch.set_num_threads(experiment.learner_threads)
    tasks = experiment.supervised_tasks
    if state is not None:
        order = experiment.all_stages
        tasks = tuple(task for task in tasks if order.index(task.name) >= order.index(state.stage))
    if not tasks:
        return start
    policy, dataset = start.build(), _load(experiment, tasks)
    for task in tasks:
        seen = dataset if task.reads_images else dataset.without(experiment.policy.cameras)
        _StageRun(run_logger, experiment, task, view=view, clock=clock).run(policy, seen, state)
        state = None
    return SavedPolicy.of(experiment, policy)


def _load(experiment: Experiment, tasks: tuple[SupervisedTask, ...]) -> SupervisedDataset:
    policy = experiment.policy
    return load_dataset(
        experiment.benchmark,
        experiment.tasks,
        settings=experiment.demos,
        policy=policy,
        cameras=read_cameras(policy, tasks),
        max_steps=experiment.max_steps,
        seed=experiment.seed,
    )


class _StageRun:
    """One stage of a run: steps, loss curve and checkpoints. However it ends, the last finished step is saved."""

    def __init__(
        self,
        run_logger: RunLogger,
        experiment: Experiment,
        task: SupervisedTask,
        *,
        view: View,
        clock: CheckpointClock,
    ):
        self._folder = run_logger.folder
        self._run_logger = run_logger
        self._experiment = experiment
        self._task = task
        self._view = view
        self._clock = clock
        self._save_is_due = False
        self._errors = self._folder.path / f"{task.name}.json"

    def run(self, policy: Policy, dataset: SupervisedDataset, state: TrainingState | None) -> None:
        """Train the stage, resuming from `state` if given; afterwards the policy is in evaluation mode."""
        task, fingerprint = self._task, self._fingerprint(dataset.training)
        if state is None:
            task.prepare(policy, dataset.training)
        trainer = SupervisedTrainer(
            task.parameters(policy),
            task.loss_fn(policy, dataset.training),
            task.reader(policy, dataset.training),
            settings=task.settings,
            seed=torch_seed_of(self._experiment.seed, task.purpose),
        )
        if state is None:
            self._save(policy, trainer, fingerprint)
        else:
            self._require_same_dataset(state.totals.dataset, fingerprint)
            trainer.restore(state.step, state.learner)
        if trainer.step == trainer.num_steps and self._errors.exists():
            return
        position = self._experiment.all_stages.index(task.name) + 1
        size = f"{len(dataset.training)} windows, {trainer.num_steps} steps"
        logger.info("stage %d: %s on %s", position, task.title, size)
        _set_training(policy, True)
        self._take_steps(trainer, policy, dataset, fingerprint)
        _set_training(policy, False)

    def _fingerprint(self, windows: Windows) -> dict[str, int]:
        """Return what recognizes the demonstrations on resume.

        These are the number of windows, a checksum of their actions, and one of the observations that the stage reads
        in up to `NUM_FINGERPRINTED` windows: images may be too large to be read all.
        """
        rows = torch.from_numpy(np.unique(np.linspace(0, len(windows) - 1, NUM_FINGERPRINTED, dtype=np.int64)))
        checksum = 0
        for _, values in sorted(windows.observations_at(rows).items()):
            checksum = zlib.crc32(values.numpy().tobytes(), checksum)
        return {
            "num_windows": len(windows),
            "crc32_of_chunks": zlib.crc32(windows.chunks_WCA.tobytes()),
            "crc32_of_observations": checksum,
        }

    def _require_same_dataset(self, before: Mapping[str, int], now: Mapping[str, int]) -> None:
        known = {name: now[name] for name in before if name in now}  # older checkpoints do not know all
        if dict(before) != known:
            raise CheckpointError(
                f"the demonstrations are not those that {self._folder.path} was training on: they have "
                f"{now}, not {before}"
            )

    def _take_steps(
        self, trainer: SupervisedTrainer, policy: Policy, dataset: SupervisedDataset, fingerprint: dict[str, int]
    ) -> None:
        losses: list[float] = []
        steps = trainer.steps()
        try:
            for loss in steps:
                losses.append(loss)
                self._view.on_step(self._task.name, trainer.num_steps, trainer.step, loss)
                if trainer.step < trainer.num_steps:
                    self._after_step(trainer, policy, dataset, fingerprint, losses)
            self._log(trainer.step, losses, self._evaluate(policy, dataset, at_end=True))
            self._plot()
            self._save(policy, trainer, fingerprint)
        except BaseException:
            if trainer.is_between_steps:
                self._log(trainer.step, losses)
                with contextlib.suppress(CheckpointError, StorageError):  # the error that ends the stage says more
                    self._save(policy, trainer, fingerprint)
            raise
        finally:
            steps.close()

    def _after_step(
        self,
        trainer: SupervisedTrainer,
        policy: Policy,
        dataset: SupervisedDataset,
        fingerprint: dict[str, int],
        losses: list[float],
    ) -> None:
        """Add a point to the loss curve and save a checkpoint, if they are due."""
        every = max(1, trainer.num_steps // NUM_POINTS)
        is_due = trainer.step % self._task.settings.checkpoint_every == 0
        is_point = is_due or trainer.step % every == 0
        if is_point:
            self._log(trainer.step, losses, self._evaluate(policy, dataset) if is_due else {})
        self._save_is_due |= is_due
        if (self._save_is_due and is_point) or self._clock.is_due:
            self._save_is_due = not self._try_to_save(policy, trainer, fingerprint)

    def _log(self, step: int, losses: list[float], errors: Mapping[str, float] | None = None) -> None:
        """Log the mean of the losses since the last point, if any, and errors; clears the losses."""
        figures = {**({"loss": float(np.mean(losses))} if losses else {}), **(errors or {})}
        losses.clear()
        if figures:
            named = {f"{self._task.name}/{name}": value for name, value in figures.items()}
            self._run_logger.log(self._task.name, step, named, kind="stage")

    def _plot(self) -> None:
        task, path = self._task, self._folder.path / f"{self._task.name}.png"
        with os_errors_as_storage_error(path):
            plot_stage(
                path,
                read_metrics(self._folder.metrics_log),
                stage=task.name,
                title=f"{self._experiment.name}: {task.title}",
                unit=task.unit,
            )

    def _try_to_save(self, policy: Policy, trainer: SupervisedTrainer, fingerprint: dict[str, int]) -> bool:
        """Save and return whether it succeeded: a later attempt can."""
        self._clock.restart()
        try:
            self._save(policy, trainer, fingerprint)
        except StorageError as error:
            logger.warning("%s; retrying with the next point of the loss curve", error)
            return False
        return True

    def _evaluate(self, policy: Policy, dataset: SupervisedDataset, *, at_end: bool = False) -> dict[str, float]:
        """Return the stage's error on held-out windows, if any, and at its end also on the training windows."""
        parts = {"training": dataset.training if at_end else None, "held out": dataset.held_out}
        found = {name: self._task.error(policy, part) for name, part in parts.items() if part is not None}
        errors = {f"{name.replace(' ', '_')}_error": error for name, error in found.items()}
        if at_end:
            logger.info("%s: %s", self._task.unit, ", ".join(f"{error:.3f} ({name})" for name, error in found.items()))
            atomic_write(self._errors, json.dumps(errors, indent=2) + "\n")
        return errors

    def _save(self, policy: Policy, trainer: SupervisedTrainer, fingerprint: dict[str, int]) -> None:
        """Save a checkpoint and delete older ones: only the end of the stage is kept permanently."""
        name = self._task.name
        totals = RunTotals(wall_s=self._run_logger.wall_s, dataset=fingerprint)
        state = TrainingState(Progress(), totals, trainer.state(), name, trainer.step)
        folder = self._folder.checkpoint(trainer.step, name)
        if not folder.exists():  # it does if an interrupt came right after it was saved
            checkpoint.save(folder, SavedPolicy.of(self._experiment, policy), state)
        saved = [path for path in checkpoint.saved_in(self._folder.path) if path.name.startswith(f"{name}-")]
        for old in saved[: -1 if trainer.step == trainer.num_steps else -NUM_KEPT]:
            delete_checkpoint(old)


def _set_training(policy: Policy, mode: bool) -> None:
    if isinstance(policy, torch.nn.Module):
        policy.train(mode)
