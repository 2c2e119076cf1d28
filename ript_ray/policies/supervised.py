"""Interfaces of the supervised stages before post-training.

The supervised settings of a policy (`SFTConfig`) list its stages; each stage is a `SupervisedTask`, which the trainer
in `ript_ray.sft` runs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ript_ray.checks import require, require_at_least, require_between, require_positive

if TYPE_CHECKING:
    import torch  # configurations must be readable without importing it


EVALUATION_BATCH_SIZE = 64
"""Windows per forward pass without gradients."""


@dataclass(frozen=True)
class SupervisedStage:
    """The optimization of one supervised stage.

    Attributes:
        num_steps: Optimizer steps over windows drawn at random, at least 1; the learning rate changes with each step.
            Either this or num-epochs. Source: ours.
        num_epochs: Passes over all windows, at least 1; the learning rate changes with each epoch. Source: QueST
            counts epochs.
        schedule_epochs: Length of the learning rate's cosine schedule, in epochs, at least 1 and only with num-epochs;
            afterwards the rate is constant; if not given, num-epochs. Source: QueST, 200 for 201 epochs.
        batch_size: Windows per step, at least 1. Source: QueST, 256 (autoencoder) and 128 (prior).
        learning_rate: Peak learning rate, above 0. Source: QueST, 1e-4.
        weight_decay: AdamW weight decay, at least 0. Source: QueST, 1e-4.
        max_grad_norm: Gradients are clipped to this norm, above 0. Source: QueST, 100.
        checkpoint_every: Optimizer steps between two checkpoints, at least 1; the end is always saved. Source: ours.
    """

    num_steps: int | None = None
    num_epochs: int | None = None
    schedule_epochs: int | None = field(default=None, metadata={"before": None})
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
        require(
            self.schedule_epochs is None or self.num_epochs is not None,
            f"schedule-epochs of a supervised stage, here {self.schedule_epochs}, needs num-epochs",
        )
        for field_name in ("num_steps", "num_epochs", "schedule_epochs", "batch_size", "checkpoint_every"):
            if (number := getattr(self, field_name)) is not None:
                require_at_least(f"{field_name.replace('_', '-')} of a supervised stage", number, 1)
        require_positive("learning-rate of a supervised stage", self.learning_rate)
        require_at_least("weight-decay of a supervised stage", self.weight_decay, 0.0)
        require_positive("max-grad-norm of a supervised stage", self.max_grad_norm)


@dataclass(frozen=True)
class Augmentation:
    """Image augmentation in supervised training. Source of the defaults: QueST.

    Attributes:
        color: Range of the color jitter (brightness, contrast, saturation, hue), 0 to 0.5; one draw per batch.
        color_share: Expected fraction of a batch's images that get color jitter, 0 to 1.
        shift: Largest random shift in pixels, in each direction, at least 0; edges are replicated.
    """

    color: float = 0.3
    color_share: float = 0.9
    shift: int = 2

    def __post_init__(self) -> None:
        require_between("sft.augmentation.color", self.color, 0.0, 0.5)
        require_between("sft.augmentation.color-share", self.color_share, 0.0, 1.0)
        require_at_least("sft.augmentation.shift", self.shift, 0)


class Rows(Protocol):
    """Indexable rows of one sensor: an array, or rows that are read from a file on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.generic]: ...


@dataclass(frozen=True)
class Windows:
    """The training examples: every observation of every demonstration with the chunk of actions that follows it.

    Attributes:
        instructions: W strings.
        observations: W rows per sensor and camera.
        chunks_WCA: float32; a chunk that reaches past the end repeats the last action.
    """

    instructions: tuple[str, ...]
    observations: Mapping[str, Rows]
    chunks_WCA: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.instructions)

    def observations_at(self, rows: "torch.Tensor") -> "dict[str, torch.Tensor]":
        """Return the observations of the windows `rows`."""
        import torch

        return {name: torch.from_numpy(np.asarray(values[rows.numpy()])) for name, values in self.observations.items()}

    def instructions_at(self, rows: "torch.Tensor") -> list[str]:
        """Return the instructions of the windows `rows`."""
        return [self.instructions[row] for row in rows]


LossFn = Callable[["torch.Tensor", np.random.Generator], "torch.Tensor"]
"""Scalar loss of the windows at given rows; the generator is the source of the step's randomness (augmentation)."""


def compute_over(windows: Windows, compute: "Callable[[torch.Tensor], torch.Tensor]") -> "torch.Tensor":
    """Return what is computed for the windows at given rows, for all windows, batch by batch and without gradients."""
    import torch

    with torch.no_grad():
        return torch.cat([compute(rows) for rows in torch.arange(len(windows)).split(EVALUATION_BATCH_SIZE)])


class SupervisedTask(ABC):
    """One supervised stage of one policy.

    Attributes:
        name: Name of the stage, used for its checkpoints, metrics and files.
        title: Description of the stage in a few words, for the log.
        unit: Unit of `error`, for the log.
        purpose: Number of the stage's random stream. The package's own are in `ript_ray.seeding.Purpose`; plugins
            use 100 or more, a different one per stage.
        reads_images: Whether the stage reads the cameras; otherwise their images are not loaded.
        settings: Steps or epochs, and the optimizer's settings.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[str]
    purpose: ClassVar[int]
    reads_images: ClassVar[bool] = True
    settings: SupervisedStage

    @abstractmethod
    def parameters(self, policy: Any) -> "Mapping[str, torch.nn.Parameter]":
        """Return the parameters that the stage trains, by name."""

    @abstractmethod
    def loss_fn(self, policy: Any, windows: Windows) -> LossFn:
        """Return the loss to minimize."""

    def error(self, policy: Any, windows: Windows) -> float:
        """Return the mean error over all windows, in `unit`, without dropout and augmentation; by default the loss."""
        import torch

        with torch.no_grad():
            loss = self.loss_fn(policy, windows)
            return float(loss(torch.arange(len(windows)), np.random.default_rng(0)))

    def prepare(self, policy: Any, windows: Windows) -> None:  # noqa: B027 (most have nothing to prepare)
        """Fit what is computed from the data, such as input normalization, before the stage's first step."""


class SFTConfig(ABC):
    """Settings of a policy's supervised stages: a frozen dataclass with a field `kind`.

    Attributes:
        kind: The kind of the policy's configuration.
        stages: Names of the stages, in order.
    """

    kind: str
    stages: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def tasks(self) -> tuple[SupervisedTask, ...]:
        """Return the stages, in their order."""


@dataclass(frozen=True)
class NoSFT(SFTConfig):
    """No supervised stage: the policy is trained elsewhere.

    Attributes:
        kind: Always none.
    """

    kind: Literal["none"] = field(default="none", kw_only=True)

    def tasks(self) -> tuple[SupervisedTask, ...]:
        """Return nothing."""
        return ()
