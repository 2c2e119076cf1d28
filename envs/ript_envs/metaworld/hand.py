"""Resets of MetaWorld's stock environments without moving the hand for 250 simulator steps to where it always ends."""

from collections import OrderedDict
from typing import Any

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from numpy.typing import NDArray

from ript_envs.metaworld.shared_model import SharesModel, use_of
from ript_envs.metaworld.stepping import HAND_QUATERNION

INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION
"""All that MuJoCo's next step depends on beside the model: positions, velocities, warm start, controls and more."""

MAX_STARTS = 1024
"""Limit on remembered starts of this process, of about 6 kB each."""

_STARTS: OrderedDict[tuple[object, ...], NDArray[np.float64]] = OrderedDict()


class RememberedHand(SharesModel):
    """What `_reset_hand` computed once is restored when the same is asked again.

    The result is a function of the simulator's state before and of the model, of which resets change the positions of
    bodies and sites alone; sites move nothing. So all the rest is the key. What is remembered is the state before the
    last simulator step, which is then taken: every array of MuJoCo is as if all steps had been.
    """

    hand_matters = True
    """False: leave the hand where it is, to draw or to check reset vectors, which do not depend on it."""

    def _reset_hand(self, steps: int = 50) -> None:
        if self.hand_matters:
            key = (
                self.model_name,
                steps,
                bytes(self.hand_init_pos),
                self.model.body_pos.tobytes(),
                bytes(self._state()),
            )
            if key not in _STARTS:
                _STARTS[key] = self._move_hand(steps * self.frame_skip - 1)
            _STARTS.move_to_end(key)
            if len(_STARTS) > MAX_STARTS:
                _STARTS.popitem(last=False)
            mujoco.mj_setState(self.model, self.data, _STARTS[key], INTEGRATION)
            mujoco.mj_step(self.model, self.data)
        self.init_tcp = self.tcp_center

    def _move_hand(self, num_steps: int) -> NDArray[np.float64]:
        """Return the state after so many simulator steps with the open hand's goal where episodes start."""
        mocap = self.model.body_mocapid[self.model.body("mocap").id]
        self.data.mocap_pos[mocap] = self.hand_init_pos
        self.data.mocap_quat[mocap] = HAND_QUATERNION
        self.data.ctrl[:] = -1, 1
        mujoco.mj_step(self.model, self.data, num_steps)
        return self._state()

    def _state(self) -> NDArray[np.float64]:
        state = np.empty(mujoco.mj_stateSize(self.model, INTEGRATION))
        mujoco.mj_getState(self.model, self.data, state, INTEGRATION)
        return state


def build_simulator(task: str) -> Any:
    """Build the stock environment of a task with a `RememberedHand` and a shared model, in `use` of which it steps.

    Python looks for a method in the task's class first, in ours next and in the common base class last: tasks that
    extend `_reset_hand` extend ours, and the stock classes stay as they are.
    """
    stock = ALL_V3_ENVIRONMENTS[task]
    use = use_of(task, stock.__new__(stock).model_name)  # a property that needs nothing of an instance
    with use:
        return type(stock.__name__, (stock, RememberedHand), {"use": use})()
