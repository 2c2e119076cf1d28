"""Environments as a rollout drives them: an episode begins, chunks of actions are executed, results are waited for.

Between a call and its result an environment may work elsewhere, so that the environments of a group run side by side.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import Environment, Observation


@dataclass(frozen=True)
class Outcome:
    """What the begin of an episode, or a chunk of its actions, led to.

    Attributes:
        success: Whether the last action solved the task.
        num_steps: Actions that were executed: all, or those up to success.
        observation: What the next decision is made on; None if there is none.
    """

    success: bool
    num_steps: int
    observation: Observation | None


@runtime_checkable
class Simulation(Protocol):
    """An environment of one task. Each `begin` or `execute` is followed by one `wait`."""

    def begin(self, initial_state: tuple[float, ...]) -> None:
        """Begin an episode at an initial state."""
        ...

    def execute(self, actions_CA: NDArray[np.float32], *, is_last: bool) -> None:
        """Execute actions until one solves the task; after the last ones of an episode nothing is observed."""
        ...

    def wait(self) -> Outcome:
        """Return what the last call led to.

        Raises:
            Exception: Whatever the environment raised.
        """
        ...

    def close(self) -> None:
        """Release the environment."""
        ...


class LocalSimulation:
    """An environment in this process; calls return when their work is done."""

    def __init__(self, environment: Environment):
        self._environment = environment
        self._outcome: Outcome | None = None

    def begin(self, initial_state: tuple[float, ...]) -> None:
        self._environment.reset(np.array(initial_state))
        self._outcome = Outcome(False, 0, self._environment.observe())

    def execute(self, actions_CA: NDArray[np.float32], *, is_last: bool) -> None:
        for num_steps, action in enumerate(actions_CA, start=1):
            success = self._environment.step(action)
            if success:
                self._outcome = Outcome(success, num_steps, None)  # as it came: a broken simulator may return NaN
                return
        self._outcome = Outcome(False, len(actions_CA), None if is_last else self._environment.observe())

    def wait(self) -> Outcome:
        assert self._outcome is not None, "nothing was begun"
        outcome, self._outcome = self._outcome, None
        return outcome

    def close(self) -> None:
        self._environment.close()
