"""Rollout actor: a policy copy and its environments. A plain class; the Ray runtime wraps it in a remote actor."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from ript_envs.contract import Environment
from ript_ray.policies.base import Policy
from ript_ray.rl.device import move_policy
from ript_ray.rl.hosting import Hosting
from ript_ray.rl.process_usage import BusyClock, process_usage
from ript_ray.rl.rollout import EnvironmentPool, OnAction, RolloutCancelledError, roll_out
from ript_ray.rl.simulation import Simulation
from ript_ray.rl.simulation_processes import SimulationProcesses
from ript_ray.rl.validation import layout_of, validate_group
from ript_ray.rl.weights import apply
from ript_ray.types import Group, GroupSummary, ProcessUsage, Rollout, RolloutRequest, Version, Weights

IsCancelled = Callable[[], bool]
"""Whether the result of a running request is no longer needed."""


class RolloutWorker:
    """Executes rollout requests: one at a time, or several in as many threads, which take turns with the policy.

    While the policy acts for one group, the processes of another step its environments. A group is still a batch of
    its own, so that its bits do not depend on the others.
    """

    def __init__(
        self,
        build_policy: Callable[[], Policy],
        make_environment: Callable[[str], Environment],
        max_steps: int,
        hosting: Hosting = Hosting(),  # noqa: B008 (frozen)
        *,
        device: str = "cpu",
    ):
        """Build the policy on its device; environments are built when needed, in processes if there are any."""
        self._policy = move_policy(build_policy(), device)
        self._acting = threading.Lock()
        self._environments = [_Environments(make_environment, hosting) for _ in range(hosting.num_groups)]
        self._unused = list(self._environments)
        self._clock = BusyClock()
        self._max_steps = max_steps
        self._version = Version(0)

    @property
    def usage(self) -> ProcessUsage:
        """Memory and processor time of this process and of those that its environments step in."""
        own, hosts = process_usage(), [each.processes for each in self._environments]
        rss_bytes = own.rss_bytes + sum(host.rss_bytes for host in hosts)
        cpu_s = own.cpu_s + sum(host.cpu_s for host in hosts)
        return replace(own, rss_bytes=rss_bytes, cpu_s=cpu_s, busy_s=self._clock.busy_s)

    def load(self, weights: Weights) -> str:
        """Load weights into the policy; returns the checksum of what was received."""
        assert len(self._unused) == len(self._environments), "one version rolls out all of a group"
        checksum = apply(weights, self._policy)
        self._version = weights.version
        return checksum

    def roll(
        self, request: RolloutRequest, *, on_action: OnAction | None = None, is_cancelled: IsCancelled = lambda: False
    ) -> tuple[GroupSummary, Group]:
        """Run the episodes of a request and validate the group.

        Args:
            request: Contexts and seeds.
            on_action: See `roll_out`.
            is_cancelled: Asked before each policy call.

        Raises:
            RolloutCancelledError: `is_cancelled` said so.
        """
        torch.set_num_threads(1)  # the order of floating-point sums must not depend on the machine

        @contextlib.contextmanager
        def turn() -> Iterator[None]:
            with self._acting:
                if is_cancelled():
                    raise RolloutCancelledError
                yield

        with self._clock.working(), self._borrowed_environments() as pool:
            group = roll_out(
                request,
                self._policy,
                pool,
                max_steps=self._max_steps,
                version=self._version,
                on_action=on_action,
                turn=turn,
            )
        summary = summarize(group, validate_group(group, request))
        return replace(summary, num_parts=request.num_parts, part=request.part), group

    def close(self) -> None:
        """Close the environments and end their processes."""
        with contextlib.ExitStack() as stack:
            for environments in self._environments:
                stack.callback(environments.close)

    @contextlib.contextmanager
    def _borrowed_environments(self) -> Iterator[EnvironmentPool[Environment | Simulation]]:
        environments = self._unused.pop()  # those used last, so that no more are built than there are groups
        try:
            yield environments.pool
        except RolloutCancelledError:
            raise
        except Exception:
            with contextlib.suppress(Exception):  # report the original error
                environments.close()  # they may be in a bad state: the next request builds new ones
            raise
        finally:
            self._unused.append(environments)


class _Environments:
    """The environments of one group at a time, and the processes that they step in, if any."""

    def __init__(self, make_environment: Callable[[str], Environment], hosting: Hosting):
        self.processes = SimulationProcesses(make_environment, hosting.num_processes)
        make: Callable[[str], Environment | Simulation]
        make = self.processes.make if hosting.num_processes else make_environment
        max_tasks = hosting.max_tasks and max(1, hosting.max_tasks // hosting.num_groups)
        self.pool = EnvironmentPool(make, hosting.max_environments // hosting.num_groups, max_tasks)

    def close(self) -> None:
        """Close the environments and end their processes."""
        with contextlib.closing(self.processes):
            self.pool.close()


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
