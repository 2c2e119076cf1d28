"""A step of a stock environment of MetaWorld, without what nobody reads: rewards, and observations between looks.

The simulator's state stays equal to that after the stock `step`, to the last bit: the same calls of MuJoCo that change
it, on the same numbers. Left out are the reward, the frame, contact forces of `mj_rnePostConstraint` (nothing reads
them, no model has sensors) and the positions of target sites, which `mj_forward` computes anew in the stock step, too.
"""

from array import array
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from ript_envs.metaworld.objects import NUM_ENTRIES, FrameReader, Vector
from ript_envs.metaworld.success import RULES

HAND_QUATERNION = array("d", [1.0, 0.0, 1.0, 0.0])
"""The hand points down."""


class Stepper:
    """Steps a stock environment and reads its frames, on demand."""

    def __init__(self, task: str, sim: Any):
        """Look up what a step reads and writes: MuJoCo's arrays keep their place for the life of `sim.data`."""
        model, data = sim.model, sim.data
        self._task, self._sim, self._model, self._data = task, sim, model, data
        self._hand_m, self._quaternion = memoryview(data.mocap_pos[0]), memoryview(data.mocap_quat[0])
        self._control, self._joints = memoryview(data.ctrl), memoryview(data.qpos)
        self._joints_before = memoryview(array("d", data.qpos))
        self._limits = list(zip(range(3), sim.mocap_low.tolist(), sim.mocap_high.tolist(), strict=True))
        self._precisions = {
            "f": (float(np.float32(sim.action_scale)), array("f", [0.0])),
            "d": (float(sim.action_scale), array("d", [0.0])),
        }
        self._reader = FrameReader(task, model, data)
        self.is_success = RULES[task](sim, self._reader)
        sim._get_curr_obs_combined_no_goal = self._reader.read  # resets read frames, too
        self._earlier: tuple[Any, FrameReader] | None = None  # built on first use
        self._last_frame = (0, np.zeros(NUM_ENTRIES))

    def begin(self, frame: Vector) -> None:
        """Start an episode after a reset that returned this frame (18,)."""
        self._last_frame = (0, frame)

    def step(self, action: NDArray[np.float32]) -> bool:
        """Apply an action (4,), clipped to [-1, 1]; return whether it solves the task.

        Raises:
            ValueError: The stock environment's limit on the length of an episode is reached.
        """
        sim = self._sim
        self._move_hand(action)
        if sim.curr_path_length >= sim.max_path_length:
            raise ValueError(f"an episode has at most {sim.max_path_length} steps: you must reset the environment")
        self._joints_before[:] = self._joints
        mujoco.mj_step(self._model, self._data, sim.frame_skip)
        sim.curr_path_length += 1
        # It computes positions for success and pictures, and the next step's solver starts from its accelerations.
        mujoco.mj_forward(self._model, self._data)
        return self.is_success()

    def _move_hand(self, action: NDArray[np.float32]) -> None:
        """Move the mocap body and the fingers: numbers, for NumPy on three of them takes a tenth of the physics' time.

        Additions and comparisons of numbers are those of arrays of doubles. The stock code computes the displacement in
        the action's precision: the product of two floats is exact as a double and is rounded once, by `array`.
        """
        scale, displacement = self._precisions[action.dtype.char]
        numbers, hand_m = action.tolist(), self._hand_m
        for axis, low, high in self._limits:
            displacement[0] = scale * min(max(numbers[axis], -1.0), 1.0)
            hand_m[axis] = min(max(hand_m[axis] + displacement[0], low), high)
        self._quaternion[:] = HAND_QUATERNION
        force = min(max(numbers[3], -1.0), 1.0)
        self._control[0], self._control[1] = force, -force

    def observation(self) -> Vector:
        """Return the stock environment's observation (39,) of this step: this frame, the one before, and the goal."""
        index = self._sim.curr_path_length
        frame = self._reader.read()
        before = self._frame_before(index)
        self._last_frame = (index, frame)
        goal = self._sim._get_pos_goal()
        if self._sim._partially_observable:
            goal = np.zeros_like(goal)
        space = self._sim.sawyer_observation_space
        return np.clip(np.concatenate([frame, before, goal]), space.low, space.high)

    def _frame_before(self, index: int) -> Vector:
        """Return the frame before the last step: as it was read then, or from the joints, which decide on it."""
        last, frame = self._last_frame
        if last == index - 1:
            return frame
        if self._earlier is None:
            data = mujoco.MjData(self._model)
            self._earlier = (data, FrameReader(self._task, self._model, data))
        data, reader = self._earlier
        data.qpos[:] = self._joints_before
        mujoco.mj_kinematics(self._model, data)
        return reader.read()
