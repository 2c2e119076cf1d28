"""What is learned, as frozen values. Checks only: nothing is mutated, derived sizes are properties.

Defaults are the paper's wherever it gives a figure; "Source: ours" marks the rest. Docstrings are what
`--help` prints: meaning, unit, range, source.
"""

from dataclasses import dataclass, field

from ript_envs.contract import require_task
from ript_envs.metaworld import MetaWorld
from ript_ray.checks import require, require_at_least, require_between, require_positive
from ript_ray.errors import ConfigError
from ript_ray.policies.quest.settings import QuestSettings


@dataclass(frozen=True)
class Demonstrations:
    """Scripted expert demonstrations for the supervised stages.

    Attributes:
        num_per_task: Demonstrations per task, at least 1. Source: paper, section 5.1.
        action_noise: Standard deviation of Gaussian noise on the expert's actions, in [0, 1] of the action
            range's half. Source: QueST's MetaWorld data has 0.2.
        max_attempts: Failed attempts are dropped; give up on a task after this many in a row, at least 1.
            Source: ours.
    """

    num_per_task: int = 50
    action_noise: float = 0.2
    max_attempts: int = 20

    def __post_init__(self) -> None:
        require_at_least("demos.num-per-task", self.num_per_task, 1)
        require_between("demos.action-noise", self.action_noise, 0.0, 1.0)
        require_at_least("demos.max-attempts", self.max_attempts, 1)


@dataclass(frozen=True)
class SupervisedStage:
    """One supervised stage: AdamW with a cosine schedule from the learning rate down to a tenth of it.

    Attributes:
        num_steps: Optimiser steps, at least 1. Source: ours; QueST counts epochs.
        batch_size: Windows per step, at least 1. Source: QueST, 256 (autoencoder) and 128 (prior).
        learning_rate: Peak learning rate, above 0. Source: QueST, 1e-4.
        weight_decay: AdamW weight decay, at least 0. Source: QueST, 1e-4.
        max_grad_norm: Gradients are scaled down to this norm, above 0. Source: QueST, 100.
    """

    num_steps: int
    batch_size: int
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    max_grad_norm: float = 100.0

    def __post_init__(self) -> None:
        require_at_least("num-steps of a supervised stage", self.num_steps, 1)
        require_at_least("batch-size of a supervised stage", self.batch_size, 1)
        require_positive("learning-rate of a supervised stage", self.learning_rate)
        require_at_least("weight-decay of a supervised stage", self.weight_decay, 0.0)
        require_positive("max-grad-norm of a supervised stage", self.max_grad_norm)


@dataclass(frozen=True)
class SFT:
    """The supervised stages that come before post-training.

    Attributes:
        autoencoder: Stage 1, actions <-> skill tokens, by L1 reconstruction.
        prior: Stage 2, skill tokens given instruction and observation, by cross-entropy.
        min_state_scale: Smallest standard deviation used to standardise a state entry, in its own units
            (metres for positions), above 0. Source: ours.
    """

    autoencoder: SupervisedStage = field(default_factory=lambda: SupervisedStage(num_steps=20_000, batch_size=256))
    prior: SupervisedStage = field(default_factory=lambda: SupervisedStage(num_steps=20_000, batch_size=128))
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
        max_policy_lag: Updates that may pass between a group's rollouts and its training, at least 0. At 0
            actors wait while the learner learns; above, both work at once. Source: paper, 0.
    """

    group_size: int = 16
    batch_rollouts: int = 2880
    contexts_per_task: int = 50
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
        clip_low: How far the ratio may fall below 1, above 0 and below 1. Source: paper, 0.2.
        clip_high: How far the ratio may rise above 1, above 0. Source: paper, 0.2.
        weight_decay: AdamW weight decay, at least 0. Source: authors' code, 1e-4.
        max_grad_norm: Gradients are scaled down to this norm, above 0. Source: authors' code, 1.0.
    """

    num_iterations: int = 20
    minibatch_rollouts: int = 24
    learning_rate: float = 1e-6
    clip_low: float = 0.2
    clip_high: float = 0.2
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        require_at_least("ppo.num-iterations (N)", self.num_iterations, 1)
        require_at_least("ppo.minibatch-rollouts", self.minibatch_rollouts, 1)
        require_positive("ppo.learning-rate", self.learning_rate)
        require(0 < self.clip_low < 1, f"ppo.clip-low must be above 0 and below 1, not {self.clip_low}")
        require_positive("ppo.clip-high", self.clip_high)
        require_at_least("ppo.weight-decay", self.weight_decay, 0.0)
        require_positive("ppo.max-grad-norm", self.max_grad_norm)


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
        max_steps: Longest episode in environment steps, 1 to the benchmark's own limit. Source: MetaWorld, 500.
        learner_threads: Torch threads of the learner, at least 1; decides the order of sums, so it belongs
            to the experiment. Source: ours.
        num_learners: Learner processes that share every minibatch (data parallel), at least 1; for the same
            reason part of the experiment. Source: ours.
        seed: Seed of every random stream, from 0 to 2147483647.
    """

    name: str
    tasks: tuple[str, ...]
    benchmark: MetaWorld = field(default_factory=MetaWorld)
    policy: QuestSettings = field(default_factory=QuestSettings)
    demos: Demonstrations = field(default_factory=Demonstrations)
    sft: SFT = field(default_factory=SFT)
    sampling: Sampling = field(default_factory=Sampling)
    ppo: PPO = field(default_factory=PPO)
    evaluation: Evaluation = field(default_factory=Evaluation)
    num_updates: int = 15
    checkpoint_every: int = 5
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
