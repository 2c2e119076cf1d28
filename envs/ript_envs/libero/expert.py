"""A scripted expert for LIBERO that sees the simulator's state: grasps objects from above and lets them go at goals.

Its episodes are not LIBERO's demonstrations, which people recorded: whatever is trained on them must say so.
"""

from enum import Enum, auto
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from ript_envs.libero.controller import MAX_STEP
from ript_envs.libero.grasps import Shapes, choose_grasp

GAIN = 3.0
"""Goal displacement per distance to the target: the arm covers about a third of a displacement in a step."""

OPEN, CLOSE = -1.0, 1.0

CLEARANCE_M = 0.05
"""Height of the fingers, and of a carried object, above everything that they pass."""

RELEASE_M = 0.005
"""Height above the place at which an object is let go that is to stand on it."""

LOST_M = 0.15
"""An object farther than this from the hand is not in it."""

NUM_GRIP_STEPS = 10
"""Environment steps to open or close the fingers."""

MAX_LOWER_STEPS = 40
"""Environment steps after which fingers or object have met something and go no lower."""


class Phase(Enum):
    """What the expert does."""

    APPROACH = auto()
    DESCEND = auto()
    GRASP = auto()
    LIFT = auto()
    CARRY = auto()
    LOWER = auto()
    RELEASE = auto()
    RISE = auto()
    DONE = auto()


class Place:
    """Where an object is to be: in or on a site or another object."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, *, site: int | None, body: int):
        """Take the site if there is one, else the body."""
        self._data, self._site, self._body = data, site, body
        self._half_height = 0.0 if site is None else float(model.site_size[site][2])
        self._shapes = Shapes(model, data, [body])

    @property
    def position(self) -> NDArray[np.float64]:
        """Position (3,) in metres."""
        return self._data.xpos[self._body] if self._site is None else self._data.site_xpos[self._site]

    @property
    def top(self) -> float:
        """Height of its upper end, in metres."""
        return self._shapes.top if self._site is None else float(self.position[2] + self._half_height)


class PickAndPlace:
    """Picks up one object and lets it go at a place."""

    def __init__(self, stock: Any, data: mujoco.MjData, goal: list[str]):
        """Begin with open fingers.

        Args:
            stock: LIBERO's environment of the task.
            data: The simulator's state, read at every action.
            goal: That an object is in or on a place, as in the task's file.
        """
        predicate, item, place = goal
        model, bodies = stock.sim.model._model, stock.obj_body_id
        is_site = place in stock.object_sites_dict
        site = stock.sim.model.site_name2id(place) if is_site else None
        self._data = data
        self._hand = stock.robots[0].eef_site_id
        self._item = bodies[item]
        self._shapes = Shapes(model, data, [self._item])
        self._others = Shapes(model, data, [body for body in bodies.values() if body != self._item])
        self._furniture = Shapes(model, data, [bodies[name] for name in stock.fixtures_dict])
        self._place = Place(model, data, site=site, body=-1 if is_site else bodies[place])
        self._release_height = RELEASE_M if predicate == "on" else CLEARANCE_M
        self._phase = Phase.APPROACH
        self._num_steps = 0  # in this phase
        self._yaw = 0.0
        self._grasp = np.zeros(3)

    @property
    def is_done(self) -> bool:
        """Whether the object has been let go, or lost, and the hand is above everything."""
        return self._phase is Phase.DONE

    def action(self) -> NDArray[np.float32]:
        """Return the action (7,) for the present state."""
        self._num_steps += 1
        match self._phase:
            case Phase.APPROACH:
                closing = self._data.site_xmat[self._hand].reshape(3, 3)[:2, 0]
                now = np.arctan2(closing[1], closing[0])
                self._grasp, self._yaw = choose_grasp(self._shapes, self._others, self._position(), now)
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
                self._leave_if_lost()
            case Phase.CARRY:
                target = self._above_place(self._carry_height())
                command = self._towards(target, CLOSE)
                self._advance_if(self._is_at(target, 0.015), self._after_carrying())
                self._leave_if_lost()
            case Phase.LOWER:
                target = self._above_place(self._place.top + self._release_height + self._below())
                command = self._towards(target, CLOSE)
                self._advance_if(self._is_at(target, 0.008) or self._num_steps > MAX_LOWER_STEPS, Phase.RELEASE)
                self._leave_if_lost()
            case Phase.RELEASE:
                command = self._towards(self._position(), OPEN)
                self._advance_if(self._num_steps >= 2 * NUM_GRIP_STEPS, self._leave())
            case Phase.RISE | Phase.DONE:
                command = self._towards(np.append(self._position()[:2], self._highest() + CLEARANCE_M), OPEN)
                self._advance_if(True, self._leave())
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

    def _after_carrying(self) -> Phase:
        return Phase.LOWER if self._clear_height() > self._place.top + self._release_height else Phase.RELEASE

    def _leave(self) -> Phase:
        return Phase.DONE if self._position()[2] > self._highest() + CLEARANCE_M - 0.02 else Phase.RISE

    def _leave_if_lost(self) -> None:
        distance = np.linalg.norm(self._data.xpos[self._item] - self._position())
        self._advance_if(bool(distance > LOST_M), self._leave())

    def _highest(self) -> float:
        return float(max(self._shapes.top, self._place.position[2], self._furniture.top))

    def _clear_height(self) -> float:
        """Return the height at which a carried object passes above its goal's rim and all furniture, in metres."""
        return max(self._place.top, self._furniture.top) + CLEARANCE_M

    def _carry_height(self) -> float:
        """Return the height of the hand for that, in metres."""
        return float(self._clear_height() + self._below())

    def _below(self) -> float:
        """Return how far the carried object reaches below the hand, in metres."""
        return float(self._position()[2] - self._shapes.low)

    def _above_place(self, height: float) -> NDArray[np.float64]:
        """Return where the hand must be for the object to be at its place, at a height of the hand in metres."""
        offset = self._position()[:2] - self._data.xpos[self._item][:2]
        return np.append(self._place.position[:2] + offset, height)


class Expert:
    """Brings about one goal of a task after the other."""

    def __init__(self, stock: Any, data: mujoco.MjData):
        """Begin with open fingers.

        Raises:
            ValueError: A goal is not that an object is in or on a place.
        """
        self._stock, self._data = stock, data
        self._goals = stock.parsed_problem["goal_state"]
        if any(predicate not in ("in", "on") for predicate, *_ in self._goals):
            raise ValueError(f"there is no scripted expert for the goal {self._goals}: it must be objects in places")
        self._current = PickAndPlace(stock, data, self._next())

    def action(self) -> NDArray[np.float32]:
        """Return the action (7,) for the present state."""
        if self._current.is_done:
            self._current = PickAndPlace(self._stock, self._data, self._next())
        return self._current.action()

    def _next(self) -> list[str]:
        """Return a goal that is still to be reached: an object that carries others comes first."""
        missing = [goal for goal in self._goals if not self._stock._eval_predicate(goal)] or self._goals
        places = {place for _, _, place in missing}
        return next((goal for goal in missing if goal[1] in places), missing[0])
