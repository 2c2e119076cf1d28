"""Rollout actor: a policy copy and its environments. A plain class; the Ray runtime wraps it in a remote actor."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from ript_envs.contract import Environment
from ript_ray.policies.base import Policy
from ript_ray.rl.rollout import (
    MAX_ENVIRONMENTS,
    EnvironmentPool,
    IsCancelled,
    OnAction,
    RolloutCancelledError,
    roll_out,
)
from ript_ray.rl.simulation import Simulation
from ript_ray.rl.simulation_processes import SimulationProcesses
from ript_ray.rl.validation import layout_of, validate_group
from ript_ray.rl.weights import apply
from ript_ray.types import Group, GroupSummary, Rollout, RolloutRequest, Version, Weights


class RolloutWorker:
    """Executes rollout requests, one at a time."""

    def __init__(
        self,
        build_policy: Callable[[], Policy],
        make_environment: Callable[[str], Environment],
        max_steps: int,
        max_environments: int = MAX_ENVIRONMENTS,
        max_tasks: int | None = None,
        env_processes: int = 0,
    ):
        """Build the policy; environments are built when a request first needs them, in processes if there are any."""
        self._policy = build_policy()
        self._processes = SimulationProcesses(make_environment, env_processes)
        make: Callable[[str], Environment | Simulation] = self._processes.make if env_processes else make_environment
        self._pool = EnvironmentPool(make, max_environments, max_tasks)
        self._max_steps = max_steps
        self._version = Version(0)

    def load(self, weights: Weights) -> str:
        """Load weights into the policy; returns the checksum of what was received."""
        checksum = apply(weights, self._policy)
        self._version = weights.version
        return checksum

    def roll(
        self, request: RolloutRequest, *, on_action: OnAction | None = None, is_cancelled: IsCancelled | None = None
    ) -> tuple[GroupSummary, Group]:
        """Run the episodes of a request and validate the group; see `roll_out` for the other arguments."""
        torch.set_num_threads(1)  # the order of floating-point sums must not depend on the machine
        try:
            group = roll_out(
                request,
                self._policy,
                self._pool,
                max_steps=self._max_steps,
                version=self._version,
                on_action=on_action,
                is_cancelled=is_cancelled,
            )
        except RolloutCancelledError:
            raise
        except Exception:
            with contextlib.suppress(Exception):  # report the original error
                self.close()  # environments may be in a bad state: the next request builds new ones
            raise
        summary = summarize(group, validate_group(group, request))
        return replace(summary, num_parts=request.num_parts, part=request.part), group

    def close(self) -> None:
        """Close the environments and end their processes."""
        with contextlib.closing(self._processes):
            self._pool.close()


def summarize(group: Group, error: str | None) -> GroupSummary:
    """Reduce a group to what the training loop needs; `error` says why it is invalid, or None."""
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
