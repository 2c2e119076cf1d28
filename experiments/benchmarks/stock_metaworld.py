"""MetaWorld's own environments, used as its authors mean them to be: what ours are compared with, here and in tests."""

import pickle
import warnings
from typing import Any

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from metaworld.types import Task
from numpy.typing import NDArray

INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION
"""All that decides how a simulation goes on: positions, velocities, warm start, controls, mocap, time."""


def build_stock(task: str, initial_state: NDArray[np.float64]) -> Any:
    """Build a `SawyerXYZEnv` whose resets start at `initial_state`, with the goal in its observations."""
    stock: Any = ALL_V3_ENVIRONMENTS[task]()
    give_initial_state(stock, task, initial_state)
    return stock


def give_initial_state(stock: Any, task: str, initial_state: NDArray[np.float64]) -> None:
    """Let the next resets start at `initial_state`."""
    chosen = {"env_cls": type(stock), "rand_vec": np.array(initial_state), "partially_observable": False}
    stock.set_task(Task(env_name=task, data=pickle.dumps(chosen)))


class StockExpert:
    """The scripted expert of a task, reading a stock environment's observation."""

    def __init__(self, task: str):
        self._policy = ENV_POLICY_MAP[task]()

    def __call__(self, stock: Any, observation: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the action (4,) for the environment's last observation (39,); the goal is never hidden from it."""
        seen = observation.copy()
        seen[36:39] = stock._get_pos_goal()
        with warnings.catch_warnings():  # about actions that saturate
            warnings.simplefilter("ignore")
            action = self._policy.get_action(seen)
        return np.clip(action, -1.0, 1.0).astype(np.float32)


def integration_state(sim: Any) -> NDArray[np.float64]:
    """Return the simulator's state as MuJoCo integrates it, in one vector."""
    state = np.empty(mujoco.mj_stateSize(sim.model, INTEGRATION))
    mujoco.mj_getState(sim.model, sim.data, state, INTEGRATION)
    return state
