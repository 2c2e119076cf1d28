"""Settings of Algorithm 1: sampling of rollouts, policy optimization, evaluation."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ript_ray.checks import require, require_at_least, require_between, require_positive
from ript_ray.seeding import Split

ContextSource = Literal["demos"] | Path | None


@dataclass(frozen=True)
class Sampling:
    """Sampling of the rollouts of an update: contexts, groups, dynamic sampling.

    Attributes:
        group_size: K, rollouts per context, at least 2. Source: paper, section 5.1, 16 for QueST.
        batch_rollouts: B, rollouts per update, a multiple of group_size. Source: paper, 2880 for a suite,
            160 for a single task.
        contexts_per_task: Training contexts per task, at least 1. Source: paper, one per demonstration, 50.
        dynamic: Whether uniform groups (all failed or all solved) are rejected. If not, they fill the batch with
            advantage 0. Source: paper, section 4.2; its Table 3 has the ablation.
        max_uniform_groups: Consecutive rejected (uniform or invalid) groups after which the search for a mixed group
            ends, at least 1. Source: ours; the authors' code searches forever.
        max_groups_per_update: Groups that may be rolled out for one update, at least groups_per_update (B / K); if not
            given, there is no limit but max_uniform_groups. Source: ours.
        min_batch_share: Smallest share of a batch that is trained where the search for more groups ends early, at the
            limit of groups per update or of uniform groups in a row; above 0, at most 1. With less, the run ends.
            Source: ours; the authors' code always trains as soon as it has 0.8.
        context_source: demos (the initial states of the demonstrations that the supervised stages train on, as
            `demos` selects them) or a JSON file of contexts; if not given, contexts are drawn from the seed. Source:
            paper, the demonstrations.
        context_noise_m: Standard deviation of the noise on the object positions of each context in the dataset, in
            metres, at least 0. Drawn once per context: all rollouts of a group start from the same state. Source:
            ours.
        rollout_noise_m: Standard deviation of the noise on the object positions of each rollout, in metres, at least
            0. Drawn for each rollout, so that the rollouts of a group start from different states. Source: paper,
            appendix A.4, up to 0.175.
        rollouts_per_request: Rollouts of a group that one actor runs as one batch, a divisor of group_size; if not
            given, the whole group. Smaller requests let more actors than there are groups work on a batch. Part of the
            experiment because the last bits of a rollout depend on the size of its batch. Source: ours.
        max_policy_lag: Largest number of updates between sampling a group and training on it, at least 0. At 0,
            actors wait while the learner trains; above, both work concurrently. Source: paper, 0.
    """

    group_size: int = 16
    batch_rollouts: int = 2880
    contexts_per_task: int = 50
    context_source: ContextSource = None
    context_noise_m: float = 0.0
    rollout_noise_m: float = field(default=0.0, metadata={"before": 0.0})
    dynamic: bool = field(default=True, metadata={"before": True})
    max_uniform_groups: int = 500
    max_groups_per_update: int | None = field(default=None, metadata={"before": None})
    min_batch_share: float = field(default=1.0, metadata={"before": 1.0})
    rollouts_per_request: int | None = field(default=None, metadata={"before": None})
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
        require_at_least("sampling.rollout-noise-m", self.rollout_noise_m, 0.0)
        require_at_least("sampling.max-uniform-groups", self.max_uniform_groups, 1)
        require_at_least("sampling.max-policy-lag", self.max_policy_lag, 0)
        if self.max_groups_per_update is not None:
            require_at_least("sampling.max-groups-per-update", self.max_groups_per_update, self.groups_per_update)
        require(
            0 < self.min_batch_share <= 1,
            f"sampling.min-batch-share must be above 0 and at most 1, not {self.min_batch_share}",
        )
        if self.rollouts_per_request is not None:
            require(
                self.rollouts_per_request >= 1 and self.group_size % self.rollouts_per_request == 0,
                f"sampling.rollouts-per-request must be a divisor of the group size {self.group_size}, "
                f"not {self.rollouts_per_request}",
            )

    @property
    def groups_per_update(self) -> int:
        """Mixed groups per batch, B / K."""
        return self.batch_rollouts // self.group_size

    @property
    def min_groups_per_update(self) -> int:
        """Groups of the smallest batch that is trained."""
        return math.ceil(round(self.min_batch_share * self.groups_per_update, 6))  # 0.7 * 10 is more than 7

    @property
    def requests_per_group(self) -> int:
        """Parts of a group that different actors may run."""
        return self.group_size // (self.rollouts_per_request or self.group_size)


@dataclass(frozen=True)
class PPO:
    """Policy optimization.

    Attributes:
        num_iterations: N, passes over the batch, at least 1. Source: paper, 20 for QueST.
        minibatch_rollouts: Rollouts per optimizer step, at least 1. Source: paper, 24.
        micro_batch_decisions: Policy queries per forward and backward pass, at least 1. The gradients of the passes of
            a minibatch are summed before its optimizer step: less memory, the same result up to rounding. If not
            given, one pass (per learner). Source: authors' code, 1 for OpenVLA-OFT.
        parallel_passes: Equal parts of a minibatch (or micro-batch) whose forward and backward passes a learner on the
            CPU runs at the same time, each in a thread with `learner-threads` torch threads, at least 1. Their
            gradients are summed in a fixed order, so the bits do not depend on the number of cores; they differ by
            rounding from those of one pass. Small policies gain more by it than by `learner-threads`. With a GPU or
            cluster.shard-base there is one pass at a time. Source: ours.
        loss_average: What the loss of a minibatch is averaged over. unit: all scored units (tokens or chunk steps)
            weigh the same, long rollouts therefore more; rollout: all rollouts weigh the same, as the mean of their
            own units. Source: authors' code, unit for QueST, rollout for OpenVLA-OFT.
        recompute_log_probs: Whether the learner recomputes the log-probabilities of the sampling policy when an update
            begins, instead of using those that the actors recorded: for actors and learners whose figures differ
            (see the metric ppo/first_approx_kl). Above lag 0, ratios then ignore the age of a group. Source: authors'
            code, yes for QueST, no for OpenVLA-OFT.
        encoding_cache_bytes: Main memory of a learner for what the policy computes of a decision without trained
            parameters (the images' patches for OpenVLA-OFT, 4 MiB each), at least 0. It is kept for later passes over
            the decision in the same update; what does not fit is computed in each. Source: ours; the authors' code
            computes it in each.
        learning_rate: AdamW learning rate, above 0. Source: paper, 1e-6 for QueST.
        learning_rates: Learning rates of parameter groups of the policy, by name, above 0; all other parameters have
            `learning_rate`. The schedule scales them alike. Source: paper, 1e-4 for the adapters of OpenVLA-OFT and
            1e-5 for its action head.
        final_learning_rate: End of the cosine schedule, above 0; if not given, the learning rate is constant.
            Source: authors' code, 9e-7 for QueST.
        schedule_updates: Length of the schedule, in updates, at least 1; afterwards the rate is constant. Source:
            authors' code, 40 for QueST.
        schedule_every: Updates between two steps of the schedule, at least 1. Source: authors' code, 2.
        clip_low: Lower clip range of the probability ratio (1 - clip_low), above 0 and below 1. Source: paper, 0.2.
        clip_high: Upper clip range of the probability ratio (1 + clip_high), above 0. Source: paper, 0.2.
        weight_decay: AdamW weight decay, at least 0. Source: authors' code, 1e-4.
        max_grad_norm: Gradients are clipped to this norm, above 0. Source: authors' code, 1.0.
        max_grad_norms: Norms to which parameter groups of the policy are clipped by themselves, by name, above 0; all
            other parameters are clipped together. Source: authors' code, 1.0 for the adapters and for the action head
            of OpenVLA-OFT.
    """

    num_iterations: int = 20
    minibatch_rollouts: int = 24
    micro_batch_decisions: int | None = field(default=None, metadata={"before": None})
    parallel_passes: int = field(default=1, metadata={"before": 1})
    loss_average: Literal["unit", "rollout"] = field(default="unit", metadata={"before": "unit"})
    recompute_log_probs: bool = field(default=False, metadata={"before": False})
    encoding_cache_bytes: int = field(default=2**30, metadata={"before": 0})
    learning_rate: float = 1e-6
    learning_rates: dict[str, float] = field(default_factory=dict, metadata={"before": {}})
    final_learning_rate: float | None = None
    schedule_updates: int = 40
    schedule_every: int = 1
    clip_low: float = 0.2
    clip_high: float = 0.2
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    max_grad_norms: dict[str, float] = field(default_factory=dict, metadata={"before": {}})

    def __post_init__(self) -> None:
        require_at_least("ppo.num-iterations (N)", self.num_iterations, 1)
        require_at_least("ppo.minibatch-rollouts", self.minibatch_rollouts, 1)
        if self.micro_batch_decisions is not None:
            require_at_least("ppo.micro-batch-decisions", self.micro_batch_decisions, 1)
        require_at_least("ppo.parallel-passes", self.parallel_passes, 1)
        require_at_least("ppo.encoding-cache-bytes", self.encoding_cache_bytes, 0)
        require_positive("ppo.learning-rate", self.learning_rate)
        if self.final_learning_rate is not None:
            require_positive("ppo.final-learning-rate", self.final_learning_rate)
        require_at_least("ppo.schedule-updates", self.schedule_updates, 1)
        require_at_least("ppo.schedule-every", self.schedule_every, 1)
        require(0 < self.clip_low < 1, f"ppo.clip-low must be above 0 and below 1, not {self.clip_low}")
        require_positive("ppo.clip-high", self.clip_high)
        require_at_least("ppo.weight-decay", self.weight_decay, 0.0)
        require_positive("ppo.max-grad-norm", self.max_grad_norm)
        for field_name in ("learning_rates", "max_grad_norms"):
            for group, value in getattr(self, field_name).items():
                require_positive(f"ppo.{field_name.replace('_', '-')} of {group}", value)

    @property
    def num_passes(self) -> int:
        """Passes over every decision of an update."""
        return self.num_iterations + self.recompute_log_probs


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of success rates.

    Attributes:
        contexts_per_task: Test contexts per task, one rollout each, at least 1: held out for what is reported. Source:
            paper, 50.
        validation_contexts_per_task: Validation contexts per task, at least 1: held out for the curve of `every`, the
            choice of the best checkpoint, and tuning. Source: ours.
        every: Updates between two evaluations on the validation contexts during post-training, at least 1; none
            unless given. The checkpoint of the best one is kept as checkpoints/best. Source: authors' code, 1 to 3.
        deterministic: Act without chance where the policy offers it, such as on the mean of its distribution;
            otherwise actions are sampled, as in training. Source: authors' code, on for OpenVLA-OFT, off for QueST.
        seed: Seed of the held-out contexts and of their rollouts, from 0 to 2147483647; that of the experiment unless
            given. Runs with different seeds are evaluated on the same contexts if they share it. Source: ours.
        context_source: Test contexts: drawn (from the seed) or benchmark (the first ones of the initial states that
            come with it, as published work does on LIBERO, which has 50 per task). Validation contexts are always
            drawn, so that the two splits differ. Source: paper, benchmark on LIBERO.
        batch_size: Episodes per actor that run as one batch, at least 1. Source: ours.
    """

    contexts_per_task: int = 50
    validation_contexts_per_task: int = field(default=20, metadata={"before": 20})
    every: int | None = field(default=None, metadata={"before": None})
    deterministic: bool = field(default=False, metadata={"before": False})
    seed: int | None = field(default=None, metadata={"before": None})
    context_source: Literal["drawn", "benchmark"] = field(default="drawn", metadata={"before": "drawn"})
    batch_size: int = 10

    def __post_init__(self) -> None:
        require_at_least("evaluation.contexts-per-task", self.contexts_per_task, 1)
        require_at_least("evaluation.validation-contexts-per-task", self.validation_contexts_per_task, 1)
        if self.every is not None:
            require_at_least("evaluation.every", self.every, 1)
        if self.seed is not None:
            require_between("evaluation.seed", self.seed, 0, 2**31 - 1)
        require_at_least("evaluation.batch-size", self.batch_size, 1)

    def num_contexts(self, split: Split) -> int:
        """Return the number of contexts per task of a split."""
        return self.contexts_per_task if split is Split.TEST else self.validation_contexts_per_task
