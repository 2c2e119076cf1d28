"""When each task is solved, without the reward that the stock environment computes with it.

Every rule is what the task's `evaluate_state` and `compute_reward` in the package `metaworld` do until its success is
known, with the same operations in the same order, so that the outcome is equal to the last bit; a test compares all 50.
`sim._target_pos` is read at each step: tasks replace it at a reset, and in some it follows the model.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ript_envs.metaworld.objects import FrameReader, Place, Vector

Success = Callable[[], bool]
"""Returns whether the simulator's present state solves the task."""

Rule = Callable[[Any, FrameReader], Success]
"""Looks up, once, what a stock environment's success depends on."""


DOUBT_M = 1e-9
"""Within this of a limit, the order of roundings could decide."""


def _length(vector: Vector) -> float:
    """Return what `np.linalg.norm` does for a vector, in a third of the time."""
    return math.sqrt(vector.dot(vector))


def _is_within(where_m: Vector, goal_m: Vector, limit_m: float) -> bool:
    """Compare a distance with a limit as the stock code does, but let numbers decide unless it is a close call.

    `math.dist` and NumPy may round to neighbouring numbers, 1e-16 m apart, so that more than `DOUBT_M` from the limit
    both give the same outcome, and the former takes a third of the time.
    """
    distance_m = math.dist(where_m.tolist(), goal_m.tolist())
    if abs(distance_m - limit_m) > DOUBT_M:
        return distance_m < limit_m
    return _length(where_m - goal_m) <= limit_m


def _near(limit_m: float, *, index: int = 0) -> Rule:
    """Solved if an object is as near to the goal as this."""

    def rule(sim: Any, reader: FrameReader) -> Success:
        position = reader.position(index)
        return lambda: _is_within(position(), sim._target_pos, limit_m)

    return rule


def _along(axis: int, limit_m: float) -> Rule:
    """Solved if the object is as near to the goal as this along one axis."""

    def rule(sim: Any, reader: FrameReader) -> Success:
        position = reader.position()
        return lambda: bool(abs(sim._target_pos.item(axis) - position().item(axis)) <= limit_m)

    return rule


def _hand_near(limit_m: float) -> Rule:
    """Solved if the middle of the fingertips is as near to the goal as this."""

    def rule(sim: Any, reader: FrameReader) -> Success:
        right = Place("site", "rightEndEffector").position(sim.model, sim.data)
        left = Place("site", "leftEndEffector").position(sim.model, sim.data)
        return lambda: _is_within((right() + left()) / 2.0, sim._target_pos, limit_m)

    return rule


def _assembly(sim: Any, reader: FrameReader) -> Success:
    centre = Place("site", "RoundNut").position(sim.model, sim.data)

    def success() -> bool:
        error = sim._target_pos - centre()
        return bool(_length(error[:2]) < 0.02 and error[2] > 0.0)

    return success


def _basketball(sim: Any, reader: FrameReader) -> Success:
    position, scale, limit_m = reader.position(), np.array([1.0, 1.0, 2.0]), sim.TARGET_RADIUS

    def success() -> bool:
        above_hoop = sim._target_pos.copy()
        above_hoop[2] = 0.3
        return _length((position() - above_hoop) * scale) <= limit_m

    return success


def _box_close(sim: Any, reader: FrameReader) -> Success:
    position = reader.position()
    return lambda: _length(position() - sim._target_pos) < 0.08


def _disassemble(sim: Any, reader: FrameReader) -> Success:
    position = reader.position()
    return lambda: bool(position()[2] > sim._target_pos[2])


def _faucet_open(sim: Any, reader: FrameReader) -> Success:
    position, offset = reader.position(), np.array([-0.04, 0.0, 0.03])
    return lambda: _is_within(position() + offset, sim._target_pos, 0.07)


def _hammer(sim: Any, reader: FrameReader) -> Success:
    nail = sim.data.joint("NailSlideJoint").qpos
    return lambda: bool(nail[0] > 0.09)


def _lever_pull(sim: Any, reader: FrameReader) -> Success:
    lever = sim.data.joint("LeverAxis").qpos
    return lambda: bool(abs(-lever.item() - np.pi / 2.0) <= np.pi / 24)


def _peg_insert(sim: Any, reader: FrameReader) -> Success:
    head, scale = Place("site", "pegHead").position(sim.model, sim.data), np.array([1.0, 2.0, 2.0])
    return lambda: _length((head() - sim._target_pos) * scale) <= 0.07


def _sweep_into(sim: Any, reader: FrameReader) -> Success:
    position = reader.position()

    def success() -> bool:
        where = position()
        return _length(where - np.array([sim._target_pos[0], sim._target_pos[1], where[2]])) <= 0.05

    return success


def _stick_pull(sim: Any, reader: FrameReader) -> Success:
    handle, is_near = reader.position(1), _near(0.12, index=1)(sim, reader)
    end = Place("site", "stick_end").position(sim.model, sim.data)
    return lambda: is_near() and bool(sim._stick_is_inserted(handle(), end()))


def _stick_push(sim: Any, reader: FrameReader) -> Success:
    """Solved only while the fingers press on the stick: contacts, which the stock code looks through, come last."""
    stick, is_near = reader.position(0), _near(0.12, index=1)(sim, reader)

    def is_lifted() -> bool:
        return bool(stick()[2] - 0.01 > sim.stick_init_pos[2]) and reader.opening() > 0

    return lambda: is_near() and is_lifted() and bool(sim.touching_main_object)


RULES: dict[str, Rule] = {
    "assembly-v3": _assembly,
    "basketball-v3": _basketball,
    "bin-picking-v3": _near(0.05),
    "box-close-v3": _box_close,
    "button-press-topdown-v3": _along(2, 0.024),
    "button-press-topdown-wall-v3": _along(2, 0.024),
    "button-press-v3": _along(1, 0.02),
    "button-press-wall-v3": _along(1, 0.03),
    "coffee-button-v3": _along(1, 0.02),
    "coffee-pull-v3": _near(0.07),
    "coffee-push-v3": _near(0.07),
    "dial-turn-v3": _near(0.07),
    "disassemble-v3": _disassemble,
    "door-close-v3": _near(0.08),
    "door-lock-v3": _along(2, 0.02),
    "door-open-v3": _along(0, 0.08),
    "door-unlock-v3": _along(0, 0.02),
    "drawer-close-v3": _near(0.05 + 0.015),
    "drawer-open-v3": _near(0.03),
    "faucet-close-v3": _near(0.07),
    "faucet-open-v3": _faucet_open,
    "hammer-v3": _hammer,
    "hand-insert-v3": _near(0.05),
    "handle-press-side-v3": _along(2, 0.02),
    "handle-press-v3": _along(2, 0.02),
    "handle-pull-side-v3": _near(0.08),
    "handle-pull-v3": _along(2, 0.05),
    "lever-pull-v3": _lever_pull,
    "peg-insert-side-v3": _peg_insert,
    "peg-unplug-side-v3": _near(0.07),
    "pick-out-of-hole-v3": _near(0.07),
    "pick-place-v3": _near(0.07),
    "pick-place-wall-v3": _near(0.07),
    "plate-slide-back-side-v3": _near(0.07),
    "plate-slide-back-v3": _near(0.07),
    "plate-slide-side-v3": _near(0.07),
    "plate-slide-v3": _near(0.07),
    "push-back-v3": _near(0.07),
    "push-v3": _near(0.05),
    "push-wall-v3": _near(0.07),
    "reach-v3": _hand_near(0.05),
    "reach-wall-v3": _hand_near(0.05),
    "shelf-place-v3": _near(0.07),
    "soccer-v3": _near(0.07),
    "stick-pull-v3": _stick_pull,
    "stick-push-v3": _stick_push,
    "sweep-into-v3": _sweep_into,
    "sweep-v3": _near(0.05),
    "window-close-v3": _along(0, 0.05),
    "window-open-v3": _along(0, 0.05),
}
"""The rule of each task."""
