"""What the training loop asks of a runtime, and the parts every runtime is built from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ript_envs.contract import Environment
from ript_ray.config import PPO
from ript_ray.learner import UpdateReport
from ript_ray.policies.contract import Policy
from ript_ray.types import Arrays, Faults, GroupSummary, RolloutRequest, Version, Weights


@dataclass(frozen=True)
class Parts:
    """What actors and learner are made of. The factories are called in the process that uses the result.

    Attributes:
        build_policy: Makes a policy with the weights to start from.
        make_environment: Makes the environment of a task.
        max_steps: Longest episode, in environment steps.
        ppo: Hyperparameters of the learner.
        seed: The experiment's seed.
        learner_threads: Torch threads of the learner.
    """

    build_policy: Callable[[], Policy]
    make_environment: Callable[[str], Environment]
    max_steps: int
    ppo: PPO
    seed: int
    learner_threads: int


class Runtime(Protocol):
    """Runs requests on rollout actors and updates on the learner."""

    @property
    def num_actors(self) -> int:
        """Rollout actors at work."""
        ...

    @property
    def faults(self) -> Faults:
        """What has gone wrong and been mended so far."""
        ...

    def launch(self, request: RolloutRequest) -> None:
        """Queue a request; returns at once."""
        ...

    def next_summary(self) -> GroupSummary:
        """Wait for the next finished request, in whatever order they finish.

        Raises:
            WorkerError: An actor failed or did not answer in time.
        """
        ...

    def keep(self, index: int) -> None:
        """Send a finished group on to the learner."""
        ...

    def drop(self, index: int) -> None:
        """Forget a finished group."""
        ...

    def update(self, indices: Sequence[int]) -> UpdateReport:
        """Learn from kept groups, in this order."""
        ...

    def broadcast(self) -> Weights:
        """Give every actor the learner's present weights; returns them once all actors hold them.

        Raises:
            WorkerError: An actor's bytes differ from the learner's.
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
