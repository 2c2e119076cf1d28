"""Interfaces of benchmarks (tasks, instructions, initial states) and of their environments.

Environments are stepped, observed and rendered separately, so that only frames that a policy reads are rendered.
"""

import difflib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Observation = dict[str, NDArray[np.generic]]
"""One observation: a named array per sensor and camera, without a batch dimension."""

Rendering = Literal["full", "fast"]
"""full: the simulator's own quality. fast: no shadows, reflections or anti-aliasing; several times as fast on a CPU.

The images differ clearly (by 9 of 255 on average in MetaWorld), so a policy needs the setting that it was trained with.
"""


class MissingPackageError(RuntimeError):
    """What an extra of ript-ray brings is not installed, or not completely; the message says what to install."""

    exit_code = 2


def require_package(module: str, *, extra: str, name: str | None = None) -> None:
    """Check, without importing it, that a package is there which only an extra of ript-ray brings.

    Args:
        module: The name that it is imported by.
        extra: The extra.
        name: Its name for readers, unless that is `module`.

    Raises:
        MissingPackageError: It is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingPackageError(f"{name or module} is not installed; pip install 'ript-ray[{extra}]'")


@dataclass(frozen=True)
class EnvironmentSpec:
    """The sizes and rates shared by all environments of a benchmark.

    Attributes:
        name: Name of the benchmark, for messages.
        action_dim: Entries of one action, A; each lies in [-1, 1].
        state_dims: Length of each low-dimensional sensor, by name.
        image_shapes: Height, width and 3 of each camera that can be rendered, by name.
        control_hz: Environment steps per second of simulated time.
        max_steps: The benchmark's own limit on the episode length, in environment steps.
        max_tasks: Tasks whose environments a process should keep open at once, for simulators that take much memory
            per task; None for any number.
    """

    name: str
    action_dim: int
    state_dims: dict[str, int]
    image_shapes: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    control_hz: float = 20.0
    max_steps: int = 500
    max_tasks: int | None = field(default=None, metadata={"before": None})


class Environment(Protocol):
    """Simulator of one task, reused across episodes."""

    def reset(self, initial_state: NDArray[np.float64]) -> None:
        """Start an episode at `initial_state`, independent of all earlier episodes in this environment."""
        ...

    def step(self, action: NDArray[np.float32]) -> bool:
        """Apply one action (A,), clipped to [-1, 1]; return whether it solves the task."""
        ...

    def observe(self) -> Observation:
        """Return the current observation. Cameras are rendered only here and in `render`."""
        ...

    def render(self, camera: str) -> NDArray[np.uint8]:
        """Return an image of a camera, uint8 (height, width, 3), upright; observations need not contain it."""
        ...

    def close(self) -> None:
        """Release the simulator."""
        ...


@runtime_checkable
class ScriptedExpert(Protocol):
    """An environment with a scripted expert."""

    def expert_action(self) -> NDArray[np.float32]:
        """Return the expert's action (A,) for the current state, each entry in [-1, 1]; it may use privileged state.

        Raises:
            ValueError: There is no expert for this task.
        """
        ...


@runtime_checkable
class StatefulEnvironment(Protocol):
    """An environment that tells the simulator's state, for files of demonstrations that hold it at every step."""

    def simulator_state(self) -> NDArray[np.float64]:
        """Return the current state, in the format of initial states."""
        ...


@dataclass(frozen=True)
class DemonstrationLayout:
    """What a benchmark's own loaders expect of a demonstration file, beside actions and observations.

    Attributes:
        attributes: Attributes of the file's group `data`, by name.
        final_observation: Whether the observation after the last action is in the file, too.
    """

    attributes: dict[str, str] = field(default_factory=dict)
    final_observation: bool = True


class Benchmark(ABC):
    """Base class of benchmarks: small, picklable, frozen dataclasses with a field `kind`.

    Simulators are built by `make`, in the process that steps them. Subclasses must not import a simulator before it is
    needed: configuration files and `--help` use these classes, too.

    Attributes:
        kind: The benchmark's name in configuration files and on the command line.
    """

    kind: str

    @property
    @abstractmethod
    def spec(self) -> EnvironmentSpec:
        """Sizes and rates of the environments."""

    @property
    def label(self) -> str:
        """The benchmark in one word: its kind, and what else decides which tasks of which scenes it has."""
        return self.kind

    @property
    def evaluation_fields(self) -> tuple[str, ...]:
        """Fields that an evaluation may change: they decide on scenes and tasks, not on what a policy reads."""
        return ()

    @property
    @abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """Names of all tasks."""

    def instruction(self, task: str) -> str:
        """Return the instruction of a task in natural language; by default the words of its name.

        Raises:
            ValueError: The benchmark has no such task.
        """
        require_task(task, self.tasks, self.spec.name)
        return task.replace("-", " ").replace("_", " ")

    @abstractmethod
    def make(self, task: str) -> Environment:
        """Build the environment of a task.

        Raises:
            ValueError: The benchmark has no such task.
        """

    @abstractmethod
    def draw_initial_state(self, task: str, seed: tuple[int, ...]) -> NDArray[np.float64]:
        """Draw an initial state of a task: the same seed gives the same state in every process.

        Raises:
            ValueError: The benchmark has no such task.
        """

    def evaluation_states(self, task: str) -> NDArray[np.float64] | None:
        """Return the initial states (N, D) that come with the benchmark, on which published work evaluates a task.

        No expert and no training may use them. None: the benchmark has none.

        Raises:
            ValueError: The benchmark has no such task.
        """
        require_task(task, self.tasks, self.spec.name)
        return None

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras whose images are part of observations."""
        return ()

    @property
    def observes_bottom_up(self) -> bool:
        """Whether observed images have their bottom row first, as those of LIBERO; what `render` returns is upright."""
        return False

    def with_cameras(self, cameras: tuple[str, ...]) -> Self:
        """Return the same benchmark with the images of exactly these cameras in its observations.

        Raises:
            ValueError: There is no such camera.
        """
        if cameras:
            raise ValueError(f"{self.spec.name} has no camera {cameras[0]!r}; it has none")
        return self

    def with_rendering(self, *, image_size: int | None = None, rendering: Rendering | None = None) -> Self:
        """Return the same benchmark with another image size or quality.

        Raises:
            ValueError: The benchmark has no camera.
        """
        raise ValueError(f"{self.spec.name} has no camera to render")

    @property
    def render_settings(self) -> dict[str, Any]:
        """The fields that affect rendered images: demonstrations and evaluation must use the same values."""
        return {}

    def move_objects(
        self,
        task: str,
        initial_state: NDArray[np.float64],
        *,
        std_m: float,
        seed: tuple[int, ...],
    ) -> NDArray[np.float64]:
        """Return the initial state with its objects moved horizontally at random, as when scenes are set up by hand.

        Args:
            task: The task that the state belongs to.
            initial_state: See `Environment.reset`.
            std_m: Standard deviation along each horizontal axis, in metres, at least 0.
            seed: The only source of randomness.

        Raises:
            ValueError: No valid state was found, or the benchmark's objects cannot be moved.
        """
        raise ValueError(f"{self.spec.name} cannot move the objects of {task}")

    @property
    def task_sets(self) -> dict[str, tuple[str, ...]]:
        """Named sets of tasks for the command line, such as ml45-train."""
        return {}

    @property
    def tasks_with_expert(self) -> tuple[str, ...]:
        """The tasks that the benchmark's scripted expert can do, if its environments are a `ScriptedExpert`."""
        return self.tasks

    def demonstration_layout(self, task: str) -> DemonstrationLayout:
        """Return what the benchmark's own loaders expect of a task's demonstration file."""
        return DemonstrationLayout()

    def demonstration_path(self, task: str) -> Path:
        """Return the path of a task's demonstration file, relative to the root folder of all data."""
        return Path(self.kind) / f"{task}.hdf5"

    @property
    def packages(self) -> tuple[str, ...]:
        """The Python packages that results depend on: a run records their versions."""
        return ()

    def require_installed(self) -> None:  # noqa: B027 (a benchmark that needs no simulator has nothing to check)
        """Check, before a run begins, that the simulator is there; nothing heavy is imported.

        Raises:
            MissingPackageError: It is not, or not completely.
        """


def require_task(task: str, known: Iterable[str], benchmark: str) -> None:
    """Check that a benchmark has a task.

    Raises:
        ValueError: `task` is not among `known`; the message names the most similar tasks.
    """
    known = tuple(known)
    if task in known:
        return
    near = difflib.get_close_matches(task, known, n=3, cutoff=0.3)
    hint = f"did you mean {', '.join(near)}?" if near else f"its tasks are {', '.join(known)}"
    raise ValueError(f"{benchmark} has no task {task!r}: {hint}")
