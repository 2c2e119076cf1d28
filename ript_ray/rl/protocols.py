"""What the training loop asks of a runtime, and the parts every runtime is built from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ript_envs.contract import Environment
from ript_ray.config.rl import PPO
from ript_ray.policies.base import Policy
from ript_ray.rl.learner import UpdateReport
from ript_ray.types import Arrays, GroupSummary, RolloutRequest, Version, Weights


@dataclass(frozen=True)
class Components:
    """What actors and learner are made of. The factories are called in the process that uses the result.

    Attributes:
        build_policy: Makes a policy with the weights to start from.
        make_environment: Makes the environment of a task.
        max_steps: Longest episode, in environment steps.
        ppo: Hyperparameters of the learner.
        seed: The experiment's seed.
        learner_threads: Torch threads of a learner process.
        num_learners: Learner processes that share every minibatch.
    """

    build_policy: Callable[[], Policy]
    make_environment: Callable[[str], Environment]
    max_steps: int
    ppo: PPO
    seed: int
    learner_threads: int
    num_learners: int = 1


@dataclass(frozen=True)
class DispatchCounts:
    """A runtime's books on the copies of requests that it handed to actors.

    Attributes:
        num_dispatched: Copies handed to an actor.
        num_lost: Copies whose answer was never used: they died with an actor or its environment and were run
            again, or another copy of a late one was faster.
        num_running: Copies at work now.
        num_replaced: Rollout actors replaced.
    """

    num_dispatched: int = 0
    num_lost: int = 0
    num_running: int = 0
    num_replaced: int = 0


class Runtime(Protocol):
    """Runs requests on rollout actors and updates on the learner."""

    @property
    def num_actors(self) -> int:
        """Rollout actors asked for."""
        ...

    @property
    def dispatch_counts(self) -> DispatchCounts:
        """The books on requests: what was handed to actors, what of it was lost, what is at work."""
        ...

    def launch(self, request: RolloutRequest) -> None:
        """Queue a request; returns at once."""
        ...

    def next_event(self) -> GroupSummary | UpdateReport:
        """Wait for the next request or update to finish, in whatever order they finish.

        Raises:
            WorkerError: The learner failed, or actors fail for good; the message says how.
        """
        ...

    def send_to_learner(self, index: int) -> None:
        """Send a finished group on to the learner."""
        ...

    def discard(self, index: int) -> None:
        """Forget a finished group."""
        ...

    def start_update(self, indices: Sequence[int]) -> None:
        """Begin to learn from kept groups, in this order; the report is an event. One update at a time."""
        ...

    def broadcast(self) -> Weights:
        """Give every actor the learner's present weights, verified by checksum.

        Returns:
            The weights, once every actor that is not at work holds them; the others take them before their
            next request.
        """
        ...

    def learner_state(self) -> Arrays:
        """The learner's state besides its weights, for a checkpoint."""
        ...

    def restore(self, version: Version, state: Arrays) -> None:
        """Put the learner where a checkpoint left it; the policy was built with its weights already."""
        ...

    def close(self) -> None:
        """Stop every process this runtime started."""
        ...
