"""Interfaces of the supervised stages before post-training.

The supervised settings of a policy (`SFTConfig`) list its stages; each stage is a `SupervisedTask`, which the trainer
in `ript_ray.sft` runs.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ript_ray.checks import require, require_at_least, require_between, require_positive
from ript_ray.policies.read_ahead import map_ahead
from ript_ray.types import Arrays

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

    def without(self, names: Collection[str]) -> "Windows":
        """Return the same windows without some of their sensors and cameras."""
        return replace(self, observations={name: rows for name, rows in self.observations.items() if name not in names})

    def instructions_at(self, rows: "torch.Tensor") -> list[str]:
        """Return the instructions of the windows `rows`."""
        return [self.instructions[row] for row in rows]


@dataclass(frozen=True)
class WindowBatch:
    """Windows that are computed with at a time.

    Attributes:
        rows: Which they are: B int64.
        inputs: What was read of them: B rows each, which may be overwritten.
    """

    rows: "torch.Tensor"
    inputs: "dict[str, torch.Tensor]"


Transform = Callable[[Arrays, Sequence[str]], Arrays]
"""From observations and instructions of B windows to what is computed with; without chance, from any thread."""


@dataclass(frozen=True)
class WindowReader:
    """What a stage reads of windows.

    Attributes:
        windows: The windows.
        names: The sensors and cameras that are read; if not given, all that there are.
        transform: What is made of them, such as smaller images; if not given, nothing.
    """

    windows: Windows
    names: tuple[str, ...] | None = None
    transform: Transform | None = None

    def read(self, rows: "torch.Tensor") -> WindowBatch:
        """Read the windows at given rows.

        Raises:
            RiptError: A file is corrupt.
        """
        import torch

        arrays: Arrays = {name: np.asarray(values[rows.numpy()]) for name, values in self._observations.items()}
        if self.transform is not None:
            arrays = self.transform(arrays, self.windows.instructions_at(rows))
        return WindowBatch(rows, {name: torch.from_numpy(array) for name, array in arrays.items()})

    def batches(self, order: "Iterable[torch.Tensor]") -> "Generator[WindowBatch, None, None]":
        """Read windows in an order that is known ahead; close the generator to end it early.

        Unless they are only looked up in memory, they are read in other threads before they are asked for. The result
        is the same.

        Args:
            order: The rows of each batch.

        Raises:
            RiptError: A file is corrupt.
        """
        is_lookup = all(isinstance(values, np.ndarray) for values in self._observations.values())
        if is_lookup and self.transform is None:
            yield from map(self.read, order)
        else:
            yield from map_ahead(self.read, order)

    @property
    def _observations(self) -> Mapping[str, Rows]:
        every = self.windows.observations
        return every if self.names is None else {name: every[name] for name in self.names}


LossFn = Callable[[WindowBatch, np.random.Generator], "torch.Tensor"]
"""Scalar loss of windows; the generator is the source of the step's randomness (augmentation)."""


def compute_over(reader: WindowReader, compute: "Callable[[WindowBatch], torch.Tensor]") -> "torch.Tensor":
    """Return what is computed for all windows of a reader, batch by batch and without gradients."""
    import torch

    order = torch.arange(len(reader.windows)).split(EVALUATION_BATCH_SIZE)
    with torch.no_grad(), contextlib.closing(reader.batches(order)) as batches:
        return torch.cat([compute(batch) for batch in batches])


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

    def reader(self, policy: Any, windows: Windows) -> WindowReader:
        """Return what the loss reads; by default all observations of the windows."""
        return WindowReader(windows)

    @abstractmethod
    def loss_fn(self, policy: Any, windows: Windows) -> LossFn:
        """Return the loss to minimize, of what `reader` reads."""

    def error(self, policy: Any, windows: Windows) -> float:
        """Return the mean error over all windows, in `unit`, without dropout and augmentation; by default the loss."""
        import torch

        with torch.no_grad():
            loss = self.loss_fn(policy, windows)
            every = self.reader(policy, windows).read(torch.arange(len(windows)))
            return float(loss(every, np.random.default_rng(0)))

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
