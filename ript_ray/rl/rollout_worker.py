"""One rollout actor: a policy copy and its environments. A plain class: Ray wraps it where it is started."""

import contextlib
import math
from collections.abc import Callable

import numpy as np
import torch

from ript_envs.contract import Environment
from ript_ray.policies.base import Policy
from ript_ray.rl import weights as weights_module
from ript_ray.rl.rollout import EnvironmentPool, roll_out
from ript_ray.rl.validation import layout_of, validate_group
from ript_ray.types import Group, GroupSummary, Rollout, RolloutRequest, Version, Weights


class RolloutWorker:
    """Answers requests one at a time."""

    def __init__(
        self, build_policy: Callable[[], Policy], make_environment: Callable[[str], Environment], max_steps: int
    ):
        """Build the policy; environments follow when a request first needs them."""
        self._policy = build_policy()
        self._pool = EnvironmentPool(make_environment)
        self._max_steps = max_steps
        self._version = Version(0)

    def load(self, weights: Weights) -> str:
        """Take over weights; returns the checksum of what arrived."""
        checksum = weights_module.apply(weights, self._policy)
        self._version = weights.version
        return checksum

    def roll(self, request: RolloutRequest) -> tuple[GroupSummary, Group]:
        """Run a request's episodes. On one thread: sums over several would come out in another order."""
        torch.set_num_threads(1)
        try:
            group = roll_out(request, self._policy, self._pool, max_steps=self._max_steps, version=self._version)
        except Exception:
            with contextlib.suppress(Exception):  # the first error is the one to tell
                self._pool.close()  # whatever state an environment was left in, the next request builds it anew
            raise
        return summarize(group, validate_group(group, request)), group

    def close(self) -> None:
        """Close the environments."""
        self._pool.close()


def summarize(group: Group, error: str | None) -> GroupSummary:
    """What the training loop needs of a group; `error` says why nobody may train on it."""
    return GroupSummary(
        index=group.index,
        version=group.version,
        successes=tuple(_reward_of(rollout) for rollout in group.rollouts),
        num_steps=tuple(rollout.num_steps for rollout in group.rollouts),
        num_bytes=sum(
            array.nbytes
            for rollout in group.rollouts
            for array in (*rollout.record.values(), rollout.log_probs_TU, rollout.valid_TU)
        ),
        layout=layout_of(group),
        error=error,
    )


def _reward_of(rollout: Rollout) -> float:
    return float(rollout.success) if isinstance(rollout.success, bool | np.bool_) else math.nan
