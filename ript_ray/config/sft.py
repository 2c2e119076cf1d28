"""Settings of the demonstrations and of the supervised stages."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ript_ray.checks import require, require_at_least, require_between, require_positive


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
