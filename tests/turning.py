"""LIBERO's scenes with a goal that a policy of random weights reaches at times: a benchmark for `--plugin`."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import Environment, StatefulEnvironment
from ript_envs.libero.benchmark import Libero, SettleGripper, Suite
from tests.wrapped import WrappedEnvironment

BASE_JOINT = 1
"""Where the simulator's state has the angle by which the arm is turned to its left, in radians."""


@dataclass(frozen=True)
class Turning(Libero):
    """LIBERO-Goal, stepped and drawn by its simulator; a task is solved once the arm has turned left by 0.2 degrees.

    By default everything is drawn in the cheapest way.
    """

    kind: Literal["turning"] = field(default="turning", kw_only=True)  # type: ignore[assignment]
    suite: Suite = "libero_goal"
    image_size: int = 256
    rendering: Literal["full", "fast"] = "fast"
    simplified_meshes: bool = True
    small_textures: bool = True
    settle_gripper: SettleGripper = "open"

    def make(self, task: str) -> Environment:
        return TurningEnvironment(super().make(task))


class TurningEnvironment(WrappedEnvironment):
    """An environment of LIBERO whose own goal does not count."""

    def __init__(self, inner: Environment) -> None:
        assert isinstance(inner, StatefulEnvironment)
        super().__init__(inner)
        self._simulator_state = inner.simulator_state
        self._start = 0.0

    def reset(self, initial_state: NDArray[np.float64]) -> None:
        super().reset(initial_state)
        self._start = self._angle

    def step(self, action: NDArray[np.float32]) -> bool:
        super().step(action)
        return self._angle > self._start + np.radians(0.2)

    @property
    def _angle(self) -> float:
        return float(self._simulator_state()[BASE_JOINT])
