"""What every benchmark offers: tasks, their instructions, their initial states and their environments.

An environment is stepped and observed separately, so that nothing is rendered that no policy reads.
"""

import difflib
from collections.abc import Iterable
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

Observation = dict[str, NDArray[np.generic]]
"""One observation: a named array per sensor, without a batch dimension."""


class Environment(Protocol):
    """One simulated task, reused from episode to episode."""

    def reset(self, initial_state: NDArray[np.float64]) -> None:
        """Start an episode at `initial_state`, whatever happened in this environment before."""
        ...

    def step(self, action: NDArray[np.float32]) -> bool:
        """Apply one action (A,), clipped to [-1, 1]; True once the task is solved in this step."""
        ...

    def observe(self) -> Observation:
        """What a policy sees now; rendering, where there is any, happens here and nowhere else."""
        ...

    def render(self, camera: str) -> NDArray[np.uint8]:
        """What a camera sees now, (height, width, 3), upright; whether or not observations hold it."""
        ...

    def expert_action(self) -> NDArray[np.float32]:
        """What a scripted expert would do now, (A,), each entry in [-1, 1]; it sees all there is to see."""
        ...

    def close(self) -> None:
        """Free the simulator."""
        ...


class Benchmark(Protocol):
    """A family of tasks. Small and picklable: simulators are built by `make`, in the process that steps them."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of all tasks."""
        ...

    @property
    def action_dim(self) -> int:
        """Entries of one action, A."""
        ...

    @property
    def state_dims(self) -> dict[str, int]:
        """Name and length of each low-dimensional sensor of an observation."""
        ...

    @property
    def image_shapes(self) -> dict[str, tuple[int, int, int]]:
        """Name, height, width and 3 of each camera that there is."""
        ...

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras whose pictures observations hold."""
        ...

    def with_cameras(self, cameras: tuple[str, ...]) -> Self:
        """The same benchmark with the pictures of these cameras, and no others, in its observations.

        Raises:
            ValueError: There is no such camera.
        """
        ...

    @property
    def control_hz(self) -> float:
        """Environment steps per second of the robot's time."""
        ...

    @property
    def max_steps(self) -> int:
        """Longest episode the benchmark's authors allow, in environment steps."""
        ...

    def instruction(self, task: str) -> str:
        """The task in words."""
        ...

    def make(self, task: str) -> Environment:
        """Build the environment of `task`."""
        ...

    def draw_initial_state(self, task: str, seed: tuple[int, ...]) -> NDArray[np.float64]:
        """An initial state of `task`: the same for the same seed in every process."""
        ...

    def move_objects(
        self, task: str, initial_state: NDArray[np.float64], *, std_m: float, seed: tuple[int, ...]
    ) -> NDArray[np.float64]:
        """The initial state with its objects moved sideways at random, as when a scene is set up by hand.

        Args:
            task: The task that the state belongs to.
            initial_state: See `Environment.reset`.
            std_m: Standard deviation along each horizontal axis, in metres, at least 0.
            seed: All of the randomness.

        Raises:
            ValueError: Nothing that the task's own rules allow was found.
        """
        ...


def require_task(task: str, known: Iterable[str], benchmark: str) -> None:
    """Check that a benchmark has a task.

    Raises:
        ValueError: `task` is not among `known`; the message names the nearest.
    """
    known = tuple(known)
    if task in known:
        return
    near = difflib.get_close_matches(task, known, n=3, cutoff=0.3)
    hint = f"did you mean {', '.join(near)}?" if near else f"its tasks are {', '.join(known)}"
    raise ValueError(f"{benchmark} has no task {task!r}: {hint}")
