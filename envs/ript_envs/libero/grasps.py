"""Where a gripper that comes from above grasps an object: across its narrowest side, or by its rim if it is wide."""

from collections.abc import Sequence

import mujoco
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""Positions (n, 3) in metres."""

MAX_WIDTH_M = 0.07
"""The fingers reach around what is at most this wide."""

FINGERTIP_M = 0.012
"""The fingers reach this far below the point between them."""

MAX_DEPTH_M = 0.035
"""The fingers reach at most this far below the top of an object."""

RIM_DEPTH_M = 0.015
"""The point between the fingers is this far below a rim."""

RIM_INSET_M = 0.008
"""And this far inside of it."""

FINGER_REACH_M = 0.05
"""Distance of an open finger's outer side from the point between the fingers."""

ROOM_M = 0.03
"""A finger that is farther than this from everything else has room."""

NUM_YAWS = 12
"""Grasps that are compared, at equal angles."""


class Shapes:
    """The geoms of bodies that collide, and what hangs on these bodies."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, bodies: Sequence[int]):
        roots = model.body_rootid[model.geom_bodyid]
        self._geoms = np.flatnonzero(np.isin(roots, bodies) & (model.geom_contype != 0))
        self._model, self._data = model, data

    def corners(self) -> NDArray[np.float64]:
        """Return the corners of the boxes around the shapes (shapes, 8, 3), in metres."""
        signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
        boxes = self._model.geom_aabb[self._geoms]
        local = boxes[:, None, :3] + signs * boxes[:, None, 3:]
        rotations = self._data.geom_xmat[self._geoms].reshape(-1, 3, 3)
        return self._data.geom_xpos[self._geoms][:, None] + np.einsum("gij,gcj->gci", rotations, local)

    @property
    def low(self) -> float:
        """Height of the lowest point, in metres."""
        return float(self.corners()[..., 2].min())

    @property
    def top(self) -> float:
        """Height of the highest point, in metres; minus infinity of no shapes at all."""
        return float(self.corners()[..., 2].max(initial=-np.inf))


def choose_grasp(item: Shapes, others: Shapes, hand: NDArray[np.float64], now: float) -> tuple[Points, float]:
    """Choose where and at which angle to grasp.

    Args:
        item: The object.
        others: What the fingers must not touch, for wide objects.
        hand: Position (3,) of the hand, in metres.
        now: Angle at which the fingers close, in radians.

    Returns:
        The point (3,) between the fingers, and the turn of the hand, in radians.
    """
    corners = item.corners().reshape(-1, 3)
    yaws = np.pi * (np.arange(NUM_YAWS) / NUM_YAWS - 0.5)
    along = np.stack([np.cos(now + yaws), np.sin(now + yaws)])
    widths = np.ptp(corners[:, :2] @ along, axis=0)
    low, high = corners.min(axis=0), corners.max(axis=0)
    if widths.min() > MAX_WIDTH_M:
        return _by_the_rim(corners, others, hand, yaws, along)
    height = max(low[2] + FINGERTIP_M, (low[2] + high[2]) / 2, high[2] - MAX_DEPTH_M)
    return np.array([*(low + high)[:2] / 2, height]), float(yaws[np.argmin(widths + 0.003 * np.abs(yaws))])


def _by_the_rim(
    corners: Points, others: Shapes, hand: NDArray[np.float64], yaws: NDArray[np.float64], along: NDArray[np.float64]
) -> tuple[Points, float]:
    """Choose the point of the rim where the fingers have most room, then one near the hand."""
    top = corners[:, 2].max()
    rim = corners[corners[:, 2] > top - 0.01, :2]
    centre = (rim.min(axis=0) + rim.max(axis=0)) / 2
    out = np.concatenate([along, -along], axis=1).T  # from the centre to the rim
    turns = np.concatenate([yaws, yaws])
    reach = ((rim - centre) @ out.T).max(axis=0) - RIM_INSET_M
    points = centre + reach[:, None] * out
    boxes = others.corners()
    boxes = boxes[boxes[..., 2].max(axis=1) > top - RIM_DEPTH_M - FINGERTIP_M]  # higher than the fingertips
    lows, highs = boxes[..., :2].min(axis=1), boxes[..., :2].max(axis=1)
    crowded = np.zeros(len(points))
    for finger in (points + FINGER_REACH_M * out, points - FINGER_REACH_M * out):
        gaps = np.maximum(np.maximum(lows - finger[:, None], finger[:, None] - highs), 0.0)
        nearest = np.linalg.norm(gaps, axis=2).min(axis=1, initial=ROOM_M)
        crowded += ROOM_M - nearest
    costs = crowded + 0.1 * np.linalg.norm(points - hand[:2], axis=1) + 0.003 * np.abs(turns)
    best = int(np.argmin(costs))
    return np.array([*points[best], top - RIM_DEPTH_M]), float(turns[best])
