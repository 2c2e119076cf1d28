"""A scripted expert for LIBERO that sees the simulator's state: grasps an object from above and lets it go at its goal.

Its episodes are not LIBERO's demonstrations, which people recorded: whatever is trained on them must say so.
"""

from enum import Enum, auto
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from ript_envs.libero.controller import MAX_STEP

GAIN = 3.0
"""Goal displacement per distance to the target: the arm covers about a third of a displacement in a step."""

OPEN, CLOSE = -1.0, 1.0

CLEARANCE_M = 0.05
"""Height of the fingers, and of a carried object, above everything that they pass."""

FINGERTIP_M = 0.012
"""The fingers reach this far below the point between them."""

MAX_DEPTH_M = 0.035
"""The fingers reach at most this far below the top of an object."""

LOST_M = 0.15
"""An object farther than this from the hand is not in it."""

NUM_GRIP_STEPS = 10
"""Environment steps to open or close the fingers."""

NUM_YAWS = 12
"""Grasps that are compared, at equal angles."""


class Phase(Enum):
    """What the expert does."""

    APPROACH = auto()
    DESCEND = auto()
    GRASP = auto()
    LIFT = auto()
    CARRY = auto()
    RELEASE = auto()


class PickAndPlace:
    """Picks up one object and lets it go above a place."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, *, hand: int, item: int, place: int):
        """Begin with open fingers.

        Args:
            model: The scene.
            data: Its state, read at every action.
            hand: Site between the fingers.
            item: Body of the object.
            place: Site where the object is to be.
        """
        self._model, self._data = model, data
        self._hand, self._item, self._place = hand, item, place
        self._shapes = [
            geom
            for geom in range(model.ngeom)
            if model.body_rootid[model.geom_bodyid[geom]] == item and model.geom_contype[geom]
        ]
        self._phase = Phase.APPROACH
        self._num_steps = 0  # in this phase
        self._yaw = 0.0
        self._grasp = np.zeros(3)

    def action(self) -> NDArray[np.float32]:
        """Return the action (7,) for the present state."""
        self._num_steps += 1
        match self._phase:
            case Phase.APPROACH:
                self._choose_grasp()
                target = self._grasp.copy()
                target[2] = self._highest() + CLEARANCE_M
                command = self._towards(target, OPEN)
                self._advance_if(self._is_at(target, 0.01) and abs(self._yaw) < 0.06, Phase.DESCEND)
            case Phase.DESCEND:
                command = self._towards(self._grasp, OPEN)
                self._advance_if(self._is_at(self._grasp, 0.008) or self._num_steps > 30, Phase.GRASP)
            case Phase.GRASP:
                command = self._towards(self._grasp, CLOSE)
                self._advance_if(self._num_steps >= NUM_GRIP_STEPS, Phase.LIFT)
            case Phase.LIFT:
                target = np.append(self._position()[:2], self._carry_height())
                command = self._towards(target, CLOSE)
                self._advance_if(self._position()[2] > target[2] - 0.02, Phase.CARRY)
                self._retry_if_lost()
            case Phase.CARRY:
                offset = self._position()[:2] - self._data.xpos[self._item][:2]
                target = np.append(self._data.site_xpos[self._place][:2] + offset, self._carry_height())
                command = self._towards(target, CLOSE)
                self._advance_if(self._is_at(target, 0.015), Phase.RELEASE)
                self._retry_if_lost()
            case Phase.RELEASE:
                command = self._towards(self._position(), OPEN)
                self._advance_if(self._num_steps >= 2 * NUM_GRIP_STEPS, Phase.APPROACH)  # it is not there: again
        return command

    def _towards(self, target: NDArray[np.float64], grip: float) -> NDArray[np.float32]:
        command = np.zeros(7)
        command[:3] = GAIN * (target - self._position()) / MAX_STEP[:3]
        command[:3] /= max(1.0, np.abs(command[:3]).max())  # straight to the target
        if self._phase in (Phase.APPROACH, Phase.DESCEND):
            command[5] = self._yaw / MAX_STEP[5]
        command[6] = grip
        return np.clip(command, -1.0, 1.0).astype(np.float32)

    def _position(self) -> NDArray[np.float64]:
        return self._data.site_xpos[self._hand].copy()

    def _is_at(self, target: NDArray[np.float64], tolerance_m: float) -> bool:
        return bool(np.linalg.norm(target - self._position()) < tolerance_m)

    def _advance_if(self, condition: bool, phase: Phase) -> None:
        if condition:
            self._phase, self._num_steps = phase, 0

    def _retry_if_lost(self) -> None:
        distance = np.linalg.norm(self._data.xpos[self._item] - self._position())
        self._advance_if(bool(distance > LOST_M), Phase.APPROACH)

    def _corners(self) -> NDArray[np.float64]:
        """Return the corners of the boxes around the object's shapes (8 * shapes, 3), in metres."""
        signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
        boxes = self._model.geom_aabb[self._shapes]
        local = boxes[:, None, :3] + signs * boxes[:, None, 3:]
        rotations = self._data.geom_xmat[self._shapes].reshape(-1, 3, 3)
        return (self._data.geom_xpos[self._shapes][:, None] + np.einsum("gij,gcj->gci", rotations, local)).reshape(
            -1, 3
        )

    def _choose_grasp(self) -> None:
        """Choose where and at which angle to grasp: across the narrowest side, then with the least rotation."""
        corners = self._corners()
        closing = self._data.site_xmat[self._hand].reshape(3, 3)[:2, 0]
        now = np.arctan2(closing[1], closing[0])
        yaws = np.pi * (np.arange(NUM_YAWS) / NUM_YAWS - 0.5)
        along = np.stack([np.cos(now + yaws), np.sin(now + yaws)])
        across = corners[:, :2] @ along
        widths = np.ptp(across, axis=0)
        self._yaw = yaws[np.argmin(widths + 0.003 * np.abs(yaws))]
        low, high = corners.min(axis=0), corners.max(axis=0)
        height = max(low[2] + FINGERTIP_M, (low[2] + high[2]) / 2, high[2] - MAX_DEPTH_M)
        self._grasp = np.array([*(low + high)[:2] / 2, height])

    def _highest(self) -> float:
        return float(max(self._corners()[:, 2].max(), self._data.site_xpos[self._place][2]))

    def _carry_height(self) -> float:
        """Return the height of the hand at which the carried object passes above its goal's rim."""
        below = self._position()[2] - self._corners()[:, 2].min()
        top = self._data.site_xpos[self._place][2] + self._model.site_size[self._place][2]
        return float(top + CLEARANCE_M + below)


def expert_for(stock: Any, data: mujoco.MjData) -> PickAndPlace:
    """Return the expert of LIBERO's environment of a task, for a state of its simulator.

    Raises:
        ValueError: The goal is not that one object is in a place.
    """
    goals = stock.parsed_problem["goal_state"]
    if len(goals) != 1 or goals[0][0] != "in":
        raise ValueError(f"there is no scripted expert for the goal {goals}: it must be one object in one place")
    _, item, place = goals[0]
    return PickAndPlace(
        stock.sim.model._model,
        data,
        hand=stock.robots[0].eef_site_id,
        item=stock.obj_body_id[item],
        place=stock.sim.model.site_name2id(place),
    )
