"""An environment around another one, for those that change one thing of it."""

import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import Environment, Observation


class WrappedEnvironment:
    """Passes every call on, and hides everything beyond the contract, such as an expert."""

    def __init__(self, inner: Environment) -> None:
        self._inner = inner

    def reset(self, initial_state: NDArray[np.float64]) -> None:
        self._inner.reset(initial_state)

    def step(self, action: NDArray[np.float32]) -> bool:
        return self._inner.step(action)

    def observe(self) -> Observation:
        return self._inner.observe()

    def render(self, camera: str) -> NDArray[np.uint8]:
        return self._inner.render(camera)

    def close(self) -> None:
        self._inner.close()
