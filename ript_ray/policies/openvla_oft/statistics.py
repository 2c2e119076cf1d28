"""Units of actions and proprioception: those of the robot, and the normalized ones that OpenVLA-OFT computes with.

Normalized is what lies from -1 to 1 between the 1st and the 99th percentile of the training data, and the gripper as 0
(close) to 1 (open); the benchmark's gripper command is -1 (open) or 1 (close). Laplace samples, their densities and the
targets of supervised stages are normalized actions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ript_ray.checks import require
from ript_ray.errors import CheckpointError
from ript_ray.storage.reading import read_object

STATISTICS_FILE = "dataset_statistics.json"

NO_NOOPS = "_no_noops"
"""Ending of a suite's key if the demonstrations' steps without motion were left out, as for the published policies."""

MEASURED = "measured"
"""Key of statistics that were measured here."""

SMALLEST = 1e-8
"""Added to a range, against division by zero. Source: openvla-oft."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bounds:
    """The range of each entry of a vector that becomes -1 to 1.

    Attributes:
        low: 1st percentile of the training data, (D,), in the entry's own unit.
        high: 99th percentile, (D,).
        mask: The entries that are scaled, (D,); the others stay as they are.

    Source: openvla-oft, normalization BOUNDS_Q99.
    """

    low: Floats
    high: Floats
    mask: NDArray[np.bool_]

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> Self:
        """Check and convert an entry of `dataset_statistics.json`: `q01`, `q99` and, if there is one, `mask`.

        Raises:
            KeyError, ValueError: It is not of that form.
        """
        low, high = (_numbers(name, content[name]) for name in ("q01", "q99"))
        mask = content.get("mask", [True] * len(low))
        if not isinstance(mask, list) or any(type(value) is not bool for value in mask):
            raise ValueError(f"mask must be a list of true and false, not {mask}")
        if not len(low) == len(high) == len(mask):
            raise ValueError(f"q01, q99 and mask have {len(low)}, {len(high)} and {len(mask)} entries")
        if (low > high).any():
            raise ValueError(f"q01 is above q99 in entry {np.argmax(low > high)}")
        return cls(low, high, np.array(mask))

    @classmethod
    def measured(cls, values_WD: Floats, mask: NDArray[np.bool_]) -> Self:
        """Return those of training data, W rows."""
        low, high = np.quantile(values_WD, (0.01, 0.99), axis=0)
        return cls(low, high, mask)

    def normalize(self, values: ArrayLike) -> Floats:
        """Return values (..., D) from -1 to 1, clipped where they are scaled."""
        values = np.asarray(values, dtype=np.float64)
        scaled = np.clip(2 * (values - self.low) / (self.high - self.low + SMALLEST) - 1, -1, 1)
        return np.where(self.mask, scaled, values)

    def unnormalize(self, values: ArrayLike) -> Floats:
        """Return values (..., D) in their own units; those beyond -1 and 1 are not clipped."""
        values = np.asarray(values, dtype=np.float64)
        return np.where(self.mask, 0.5 * (values + 1) * (self.high - self.low + SMALLEST) + self.low, values)


@dataclass(frozen=True)
class Statistics:
    """Statistics of the demonstrations that a policy was trained on.

    Attributes:
        key: Their name in the file, such as libero_goal_no_noops.
        action: Of actions; the last entry is the gripper, 0 (close) to 1 (open).
        proprio: Of proprioception: the hand's position and orientation, and the two fingers.
    """

    key: str
    action: Bounds
    proprio: Bounds

    @classmethod
    def read(cls, folder: Path, suite: str) -> Self:
        """Read those of a suite from a checkpoint folder's `dataset_statistics.json`.

        (The `norm_stats` in its `config.json` are of other data, in the published folders as well.)

        Raises:
            CheckpointError: The file is missing or damaged.
            ConfigError: It has none of this suite.
        """
        path = folder / STATISTICS_FILE
        content = read_object(path)
        key = key_of(suite, list(content), path)
        try:
            return cls(key, Bounds.parse(content[key]["action"]), Bounds.parse(content[key]["proprio"]))
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(f"{path}, {key} is damaged: {what}") from error

    @classmethod
    def unmeasured(cls, action_dim: int, proprio_dim: int) -> Self:
        """Return those of a policy before its first stage: normalized units are the benchmark's."""
        return cls.measured(*(np.array([[-1.0], [1.0]]).repeat(dim, 1) for dim in (action_dim, proprio_dim)))

    @classmethod
    def measured(cls, actions_WA: ArrayLike, proprio_WD: ArrayLike) -> Self:
        """Return those of demonstrations: the benchmark's actions and the robot's states, W rows each.

        Steps without motion count, unlike in the published files.
        """
        actions, proprio = (np.asarray(values, np.float64) for values in (actions_WA, proprio_WD))
        is_scaled = np.arange(actions.shape[1]) < actions.shape[1] - 1  # all but the gripper
        return cls(
            MEASURED,
            Bounds.measured(_with_gripper_from_0_to_1(actions), is_scaled),
            Bounds.measured(proprio, np.full(proprio.shape[1], True)),
        )

    def arrays(self) -> dict[str, Floats]:
        """Return the bounds by name; they are shared, not copied."""
        parts = {"action": self.action, "proprio": self.proprio}
        return {f"{name}.{end}": getattr(bounds, end) for name, bounds in parts.items() for end in ("low", "high")}

    def normalize_proprio(self, proprio: ArrayLike) -> NDArray[np.float32]:
        """Return the network's input (..., 8): see `proprioception`. Source: openvla-oft, `normalize_proprio`."""
        return self.proprio.normalize(proprio).astype(np.float32)

    def environment_actions(self, normalized: ArrayLike) -> Floats:
        """Return the benchmark's actions (..., A) of normalized ones; the simulator clips them from -1 to 1.

        Source: openvla-oft, `_unnormalize_actions`, `normalize_gripper_action` and `invert_gripper_action`.
        """
        actions = self.action.unnormalize(normalized)
        actions[..., -1] = -np.sign(2 * actions[..., -1] - 1)
        return actions

    def normalize_actions(self, actions: ArrayLike) -> Floats:
        """Return the normalized actions (..., A) of a demonstration's, the inverse of `environment_actions`.

        What lies outside the percentiles is clipped. A gripper command of 0 opens. Source: openvla-oft,
        `libero_dataset_transform` and `normalize_action_and_proprio`.
        """
        return self.action.normalize(_with_gripper_from_0_to_1(actions))


def _with_gripper_from_0_to_1(actions: ArrayLike) -> Floats:
    """Return the benchmark's actions (..., A) with the gripper as 0 (close) to 1 (open)."""
    actions = np.array(actions, dtype=np.float64)
    actions[..., -1] = 1 - np.clip(actions[..., -1], 0, 1)
    return actions


def key_of(suite: str, keys: Sequence[str], path: Path) -> str:
    """Return the key of a suite's statistics. Source: openvla-oft, `check_unnorm_key`.

    Raises:
        ConfigError: There is none: the policy was trained on other data.
    """
    found = [key for key in (suite, suite + NO_NOOPS) if key in keys]
    require(
        bool(found),
        f"{path} has no statistics of {suite}, only of {', '.join(keys) or 'nothing'}: the checkpoint was trained on "
        f"other tasks; choose one trained on {suite}, or the suite that it was trained on",
    )
    return found[0]


def proprioception(position: ArrayLike, orientation: ArrayLike, fingers: ArrayLike) -> Floats:
    """Return the proprioception (..., 8) of LIBERO's sensors ee_pos, ee_ori and gripper_states.

    Source: openvla-oft, `prepare_observation` (run_libero_eval.py).
    """
    return np.concatenate([np.asarray(each, np.float64) for each in (position, orientation, fingers)], axis=-1)


def _numbers(name: str, values: object) -> Floats:
    if not isinstance(values, list) or any(type(value) not in (int, float) for value in values) or not values:
        raise ValueError(f"{name} must be a list of numbers, not {values}")
    numbers = np.array(values, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} must be finite, not {values}")
    return numbers
