"""The runtime interface that the training loop needs, and the components that a runtime is built from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ript_envs.contract import Environment
from ript_ray.config.rl import PPO
from ript_ray.policies.base import Policy
from ript_ray.rl.learner import UpdateReport
from ript_ray.types import Arrays, Group, GroupSummary, ProcessUsage, RolloutRequest, Version, Weights


@dataclass(frozen=True)
class Components:
    """What actors and learners are built from. Factories are called in the process that uses the result.

    Attributes:
        build_policy: Builds the policy with its initial weights.
        make_environment: Builds the environment of a task.
        max_steps: Episode horizon, in environment steps.
        ppo: Hyperparameters of the learner.
        seed: The experiment's seed.
        learner_threads: Torch threads per learner process.
        num_learners: Data-parallel learner processes.
        parameter_groups: Prefixes of the policy's parameter groups; see `PolicyConfig`.
        max_tasks: Tasks whose environments a process keeps open, or None for any number.
        keep_group: Called by a learner with every group that it receives, or none.
    """

    build_policy: Callable[[], Policy]
    make_environment: Callable[[str], Environment]
    max_steps: int
    ppo: PPO
    seed: int
    learner_threads: int
    num_learners: int = 1
    parameter_groups: Mapping[str, str] = field(default_factory=dict)
    max_tasks: int | None = None
    keep_group: Callable[[Group], None] | None = None


@dataclass(frozen=True)
class DispatchCounts:
    """Counts of dispatched, lost and running copies of requests.

    Attributes:
        num_dispatched: Copies sent to an actor.
        num_lost: Copies lost with an actor or its environment, and retried.
        num_duplicated: Copies cancelled because another copy of the same straggler was faster.
        num_speculated: Copies run ahead of need and dropped, because no batch needed them before new weights came.
        num_running: Copies that are running now.
        num_replaced: Rollout actors replaced.
    """

    num_dispatched: int = 0
    num_lost: int = 0
    num_duplicated: int = 0
    num_speculated: int = 0
    num_running: int = 0
    num_replaced: int = 0


@dataclass(frozen=True)
class Rerun:
    """A group that was lost on its way to the learner and rolled out again, by newer weights: another result.

    Attributes:
        lost: What was admitted.
        trained: What is trained instead.
    """

    lost: GroupSummary
    trained: GroupSummary


@dataclass(frozen=True)
class RuntimeUsage:
    """What the processes of a runtime use, as they last reported it.

    Attributes:
        processes: By kind (driver, learner, actor) and number.
        cpu_s: Processor time of all of them since they began, those that were replaced included, in seconds.
    """

    processes: Mapping[str, Mapping[int, ProcessUsage]] = field(default_factory=dict)
    cpu_s: float = 0.0


class Runtime(Protocol):
    """Executes rollout requests on actors and updates on the learner."""

    @property
    def num_actors(self) -> int:
        """Rollout actors that there should be now."""
        ...

    @property
    def num_alive(self) -> int:
        """Rollout actors that are up now: neither lost nor starting."""
        ...

    @property
    def dispatch_counts(self) -> DispatchCounts:
        """Counts of dispatched, lost and running requests, and of replaced actors."""
        ...

    @property
    def usage(self) -> RuntimeUsage:
        """Memory and processor time of all processes."""
        ...

    def launch(self, request: RolloutRequest) -> None:
        """Queue a request; returns at once."""
        ...

    def run_ahead(self, request_of: Callable[[int], RolloutRequest] | None, first_index: int) -> None:
        """Let actors that would idle run requests from `first_index` on, before they are launched.

        Their results are held until they are launched, or dropped at the next broadcast. With None, drop them now.
        """
        ...

    def next_event(self) -> GroupSummary | UpdateReport:
        """Wait for the next request or update to finish, in order of completion.

        Raises:
            WorkerError: The learner failed, or actors failed beyond the retry limits; the message gives the cause.
        """
        ...

    def roll_out(self, requests: Sequence[RolloutRequest]) -> list[GroupSummary]:
        """Run requests that are not for training, such as an evaluation, to their end; drop their groups.

        Their indices must differ from those of training. Groups of training that finish meanwhile are later events.
        `dispatch_counts` leave these requests out, but their lost copies count as lost.

        Returns:
            The summaries, in the order of the requests.

        Raises:
            WorkerError: See `next_event`.
        """
        ...

    def send_to_learner(self, index: int) -> None:
        """Send a finished group to the learner."""
        ...

    def give(self, request: RolloutRequest, summary: GroupSummary, group: Group) -> None:
        """Send a group to the learner that was rolled out elsewhere, e.g. for an earlier process."""
        ...

    def discard(self, index: int) -> None:
        """Drop a finished group."""
        ...

    def start_update(self, indices: Sequence[int]) -> Sequence[Rerun]:
        """Start an update on groups sent to the learner, in this order; its report is an event. One at a time.

        Returns:
            Groups of these whose result has changed since they finished; none at lag 0.
        """
        ...

    def broadcast(self) -> Weights:
        """Have every actor load the learner's current weights before its next request, verified by checksum.

        Returns:
            The weights; no actor is waited for.
        """
        ...

    def learner_state(self) -> Arrays:
        """Return the learner's state apart from its weights, for a checkpoint."""
        ...

    def restore(self, version: Version, state: Arrays) -> None:
        """Restore the learner from a checkpoint; the policy was already built with its weights."""
        ...

    def close(self) -> None:
        """Stop all processes that this runtime started."""
        ...
