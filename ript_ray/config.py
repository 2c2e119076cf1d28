"""What is learned, as frozen values. Checks only: nothing is mutated, derived sizes are properties.

Defaults are the paper's wherever it gives a figure; "Source: ours" marks the rest. Docstrings are what
`--help` prints: meaning, unit, range, source.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ript_envs.contract import require_task
from ript_envs.metaworld import MetaWorld
from ript_ray.checks import require, require_at_least, require_between, require_positive
from ript_ray.errors import ConfigError
from ript_ray.policies.quest.settings import QuestSettings
from ript_ray.types import Stage


@dataclass(frozen=True)
class Demonstrations:
    """Expert demonstrations for the supervised stages.

    Attributes:
        folder: Folder of demonstration files, one per task, as `ript-ray demos` or QueST's authors write them; unless
            given, scripted experts are recorded at the start.
        num_per_task: Demonstrations per task that are trained on, at least 1. Source: paper, section 5.1.
        selection: Which of a file's demonstrations: first (the first so many) or spread (evenly from first to last,
            as the authors choose few). Without a folder the first so many successes are recorded.
        num_held_out: Demonstrations per task that no stage trains on, at least 0: the error of the supervised stages
            is measured on them, too. Source: ours.
        action_noise: Standard deviation of Gaussian noise on the expert's actions, in [0, 1] of the action
            range's half. Source: QueST's MetaWorld data has 0.2.
        max_attempts: Failed attempts are dropped; give up on a task after this many in a row, at least 1.
            Source: ours.
    """

    folder: Path | None = None
    num_per_task: int = 50
    selection: Literal["first", "spread"] = "first"
    num_held_out: int = 0
    action_noise: float = 0.2
    max_attempts: int = 20

    def __post_init__(self) -> None:
        require_at_least("demos.num-per-task", self.num_per_task, 1)
        require_at_least("demos.num-held-out", self.num_held_out, 0)
        require_between("demos.action-noise", self.action_noise, 0.0, 1.0)
        require_at_least("demos.max-attempts", self.max_attempts, 1)


@dataclass(frozen=True)
class SupervisedStage:
    """One supervised stage: AdamW with a cosine schedule from the learning rate down to a tenth of it.

    Attributes:
        num_steps: Optimiser steps over windows drawn at random, at least 1; the schedule moves with each.
            Either this or num-epochs. Source: ours.
        num_epochs: Passes over all windows, at least 1; the schedule moves with each. Source: QueST counts so.
        batch_size: Windows per step, at least 1. Source: QueST, 256 (autoencoder) and 128 (prior).
        learning_rate: Peak learning rate, above 0. Source: QueST, 1e-4.
        weight_decay: AdamW weight decay, at least 0. Source: QueST, 1e-4.
        max_grad_norm: Gradients are scaled down to this norm, above 0. Source: QueST, 100.
        checkpoint_every: Optimiser steps from one checkpoint to the next, at least 1; the end is always saved.
            Source: ours.
    """

    num_steps: int | None = None
    num_epochs: int | None = None
    batch_size: int = 128
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    max_grad_norm: float = 100.0
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        require(
            (self.num_steps is None) != (self.num_epochs is None),
            "a supervised stage takes either num-steps or num-epochs, "
            f"not {self.num_steps} steps and {self.num_epochs} epochs",
        )
        for field_name in ("num_steps", "num_epochs", "batch_size", "checkpoint_every"):
            if (number := getattr(self, field_name)) is not None:
                require_at_least(f"{field_name.replace('_', '-')} of a supervised stage", number, 1)
        require_positive("learning-rate of a supervised stage", self.learning_rate)
        require_at_least("weight-decay of a supervised stage", self.weight_decay, 0.0)
        require_positive("max-grad-norm of a supervised stage", self.max_grad_norm)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of pictures in the supervised prior's training. Source of the defaults: QueST.

    Attributes:
        color: Range of change of brightness, contrast, saturation and hue, 0 to 0.5; one draw per batch.
        color_share: Share of a batch's pictures whose colours change, 0 to 1.
        shift: Pictures move by up to this many pixels each way, at least 0; edges are repeated.
    """

    color: float = 0.3
    color_share: float = 0.9
    shift: int = 2

    def __post_init__(self) -> None:
        require_between("sft.augmentation.color", self.color, 0.0, 0.5)
        require_between("sft.augmentation.color-share", self.color_share, 0.0, 1.0)
        require_at_least("sft.augmentation.shift", self.shift, 0)


@dataclass(frozen=True)
class SFT:
    """The supervised stages that come before post-training.

    Attributes:
        autoencoder: Stage 1, actions <-> skill tokens, by L1 reconstruction.
        prior: Stage 2, skill tokens given instruction and observation, by cross-entropy.
        augmentation: Random changes of the pictures that stage 2 sees.
        noisy_tokens: Whether stage 2 learns skill tokens that were computed anew in each step, with the autoencoder's
            dropout on, rather than once without. Source: the authors' code does so; the paper says nothing.
        min_state_scale: Smallest standard deviation used to standardise a state entry, in its own units
            (metres for positions), above 0. Source: ours.
    """

    autoencoder: SupervisedStage = field(default_factory=lambda: SupervisedStage(num_steps=20_000, batch_size=256))
    prior: SupervisedStage = field(default_factory=lambda: SupervisedStage(num_steps=20_000, batch_size=128))
    augmentation: Augmentation = field(default_factory=Augmentation)
    noisy_tokens: bool = False
    min_state_scale: float = 0.05

    def __post_init__(self) -> None:
        require_positive("sft.min-state-scale", self.min_state_scale)


@dataclass(frozen=True)
class Sampling:
    """Where the rollouts of an update come from: contexts, groups, dynamic sampling.

    Attributes:
        group_size: K, rollouts of one context, at least 2. Source: paper, section 5.1, 16 for QueST.
        batch_rollouts: B, rollouts of one update, a multiple of group_size. Source: paper, 2880 for a suite,
            160 for a single task.
        contexts_per_task: Training contexts per task, at least 1. Source: paper, one per demonstration, 50.
        max_uniform_groups: The search for a mixed group ends after this many useless (uniform or invalid)
            groups in a row, at least 1. Source: ours; the authors' code searches for ever.
        context_source: A folder of demonstration files (the first state of each demonstration), or a JSON file of
            contexts; unless given, contexts are drawn from the seed. Source: paper, the demonstrations.
        context_noise_m: Standard deviation of noise on the contexts' initial object positions, in metres, at least 0.
            Source: paper, appendix A.4, up to 0.175.
        max_policy_lag: Updates that may pass between a group's rollouts and its training, at least 0. At 0
            actors wait while the learner learns; above, both work at once. Source: paper, 0.
    """

    group_size: int = 16
    batch_rollouts: int = 2880
    contexts_per_task: int = 50
    context_source: Path | None = None
    context_noise_m: float = 0.0
    max_uniform_groups: int = 500
    max_policy_lag: int = 0

    def __post_init__(self) -> None:
        require_at_least("sampling.group-size (K)", self.group_size, 2)
        require(
            self.batch_rollouts >= self.group_size and self.batch_rollouts % self.group_size == 0,
            f"sampling.batch-rollouts (B) must be a positive multiple of the group size {self.group_size}, "
            f"not {self.batch_rollouts}",
        )
        require_at_least("sampling.contexts-per-task", self.contexts_per_task, 1)
        require_at_least("sampling.context-noise-m", self.context_noise_m, 0.0)
        require_at_least("sampling.max-uniform-groups", self.max_uniform_groups, 1)
        require_at_least("sampling.max-policy-lag", self.max_policy_lag, 0)

    @property
    def groups_per_update(self) -> int:
        """Mixed groups that make one batch, B / K."""
        return self.batch_rollouts // self.group_size


@dataclass(frozen=True)
class PPO:
    """Policy optimisation.

    Attributes:
        num_iterations: N, passes over the batch, at least 1. Source: paper, 20 for QueST.
        minibatch_rollouts: Rollouts of one optimiser step, at least 1. Source: paper, 24.
        learning_rate: AdamW learning rate, above 0. Source: paper, 1e-6 for QueST.
        final_learning_rate: Where a cosine schedule ends, above 0; the learning rate stays as it is unless given.
            Source: authors' code, 9e-7 for QueST.
        schedule_updates: Updates that the schedule takes, at least 1; afterwards the rate stays. Source: authors'
            code, 40 for QueST.
        schedule_every: Updates from one move of the schedule to the next, at least 1. Source: authors' code, 2.
        clip_low: How far the ratio may fall below 1, above 0 and below 1. Source: paper, 0.2.
        clip_high: How far the ratio may rise above 1, above 0. Source: paper, 0.2.
        weight_decay: AdamW weight decay, at least 0. Source: authors' code, 1e-4.
        max_grad_norm: Gradients are scaled down to this norm, above 0. Source: authors' code, 1.0.
    """

    num_iterations: int = 20
    minibatch_rollouts: int = 24
    learning_rate: float = 1e-6
    final_learning_rate: float | None = None
    schedule_updates: int = 40
    schedule_every: int = 1
    clip_low: float = 0.2
    clip_high: float = 0.2
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        require_at_least("ppo.num-iterations (N)", self.num_iterations, 1)
        require_at_least("ppo.minibatch-rollouts", self.minibatch_rollouts, 1)
        require_positive("ppo.learning-rate", self.learning_rate)
        if self.final_learning_rate is not None:
            require_positive("ppo.final-learning-rate", self.final_learning_rate)
        require_at_least("ppo.schedule-updates", self.schedule_updates, 1)
        require_at_least("ppo.schedule-every", self.schedule_every, 1)
        require(0 < self.clip_low < 1, f"ppo.clip-low must be above 0 and below 1, not {self.clip_low}")
        require_positive("ppo.clip-high", self.clip_high)
        require_at_least("ppo.weight-decay", self.weight_decay, 0.0)
        require_positive("ppo.max-grad-norm", self.max_grad_norm)

    def learning_rate_of(self, update: int) -> float:
        """The learning rate of an update, counted from 1. Source: authors' code (torch's CosineAnnealingLR)."""
        if self.final_learning_rate is None:
            return self.learning_rate
        moved = (update - 1) // self.schedule_every * self.schedule_every
        share = 0.5 * (1.0 + math.cos(math.pi * min(1.0, moved / self.schedule_updates)))
        return self.final_learning_rate + share * (self.learning_rate - self.final_learning_rate)


@dataclass(frozen=True)
class Evaluation:
    """How success rates are measured.

    Attributes:
        contexts_per_task: Held-out contexts per task, one rollout each, at least 1. Source: paper, 50.
        batch_size: Episodes that one actor runs side by side, at least 1. Source: ours.
    """

    contexts_per_task: int = 50
    batch_size: int = 10

    def __post_init__(self) -> None:
        require_at_least("evaluation.contexts-per-task", self.contexts_per_task, 1)
        require_at_least("evaluation.batch-size", self.batch_size, 1)


@dataclass(frozen=True)
class Experiment:
    """One experiment: what is learned, and nothing of where it runs.

    Attributes:
        name: Name of the experiment; its runs lie under runs/<name>/.
        tasks: Tasks of the benchmark that one policy serves, at least one.
        stages: The stages that the experiment trains, in their order and without a gap.
        start_from: The policy that the first stage starts from, where that is not the autoencoder: a model folder, a
            checkpoint, or a run's folder (its newest checkpoint).
        benchmark: Where the tasks come from.
        policy: The policy's sizes and sampling.
        demos: Demonstrations for the supervised stages.
        sft: The supervised stages.
        sampling: Contexts, groups and dynamic sampling.
        ppo: Policy optimisation.
        evaluation: Measuring success.
        num_updates: M, updates of the policy, at least 1. Source: authors' code, 15 to 30.
        checkpoint_every: Updates from one checkpoint to the next, at least 1; the last weights are always
            saved. Source: authors' code, 5 to 10.
        keep_weights: Keep the trainable weights of every update in the run's folder, so that any rollout can be
            replayed; without them, those of versions that have a checkpoint. Costs 4 bytes per trainable parameter
            and update: 1.5 MB for the quickstart's policy, 46 MB for the published one. Source: ours.
        max_steps: Longest episode in environment steps, 1 to the benchmark's own limit. Source: MetaWorld, 500.
        learner_threads: Torch threads of the learner, at least 1; decides the order of sums, so it belongs
            to the experiment. Source: ours.
        num_learners: Learner processes that share every minibatch (data parallel), at least 1; for the same
            reason part of the experiment. Source: ours.
        seed: Seed of every random stream, from 0 to 2147483647.
    """

    name: str
    tasks: tuple[str, ...]
    stages: tuple[Stage, ...] = tuple(Stage)
    start_from: Path | None = None
    benchmark: MetaWorld = field(default_factory=MetaWorld)
    policy: QuestSettings = field(default_factory=QuestSettings)
    demos: Demonstrations = field(default_factory=Demonstrations)
    sft: SFT = field(default_factory=SFT)
    sampling: Sampling = field(default_factory=Sampling)
    ppo: PPO = field(default_factory=PPO)
    evaluation: Evaluation = field(default_factory=Evaluation)
    num_updates: int = 15
    checkpoint_every: int = 5
    keep_weights: bool = True
    max_steps: int = 500
    learner_threads: int = 1
    num_learners: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            bool(self.name) and not set(self.name) & set("/\\ \t\n") and self.name.strip(".") != "",
            f"name must be a word that can name a folder, not {self.name!r}",
        )
        require(bool(self.tasks), "tasks must name at least one task")
        require(len(set(self.tasks)) == len(self.tasks), f"tasks must differ from each other, not {self.tasks}")
        self._check_stages()
        for task in self.tasks:
            try:
                require_task(task, self.benchmark.tasks, "MetaWorld")
            except ValueError as error:
                raise ConfigError(f"tasks: {error}") from None
        for sensor in self.policy.sensors:
            require(
                sensor in self.benchmark.state_dims,
                f"policy.sensors: MetaWorld has no sensor {sensor!r}; it has {', '.join(self.benchmark.state_dims)}",
            )
        for camera in self.policy.cameras:
            require(
                camera in self.benchmark.image_shapes,
                f"policy.cameras: MetaWorld has no camera {camera!r}; it has {', '.join(self.benchmark.image_shapes)}",
            )
        require_between("max-steps", self.max_steps, 1, self.benchmark.max_steps)
        for field_name in ("num_updates", "checkpoint_every", "learner_threads", "num_learners"):
            require_at_least(field_name.replace("_", "-"), getattr(self, field_name), 1)
        require_between("seed", self.seed, 0, 2**31 - 1)

    def _check_stages(self) -> None:
        order = tuple(Stage)
        runs = [order[first:last] for first in range(len(order)) for last in range(first + 1, len(order) + 1)]
        require(
            self.stages in runs,
            f"stages must be one or more of {', '.join(order)}, in this order and without a gap, "
            f"not {', '.join(self.stages) or 'none'}",
        )
        require(
            self.start_from is None or self.stages[0] is not Stage.AUTOENCODER,
            f"start-from: a run that begins with the autoencoder starts from nothing, not from {self.start_from}",
        )
