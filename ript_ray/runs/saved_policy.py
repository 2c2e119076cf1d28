"""A policy as data: its experiment's configuration and the arrays that the configuration alone does not give."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from ript_ray.config.experiment import Experiment
from ript_ray.policies.base import Policy
from ript_ray.policies.state_dict import array_of
from ript_ray.rl.protocols import Components
from ript_ray.rl.weights import tensors_of
from ript_ray.seeding import Purpose, torch_seed_of
from ript_ray.types import Arrays, Weights


@dataclass(frozen=True)
class SavedPolicy:
    """All that any process needs to build an experiment's policy: what a checkpoint holds.

    Attributes:
        experiment: The policy's configuration, and the benchmark that fixes its inputs and outputs.
        arrays: What `PolicyConfig.build` does not recreate: see `Policy.state_arrays`.
    """

    experiment: Experiment
    arrays: Arrays = field(repr=False)

    @classmethod
    def initial(cls, experiment: Experiment) -> "SavedPolicy":
        """Return the experiment's policy with random weights, the same in every process."""
        with _initial_randomness(experiment):
            return cls(experiment, experiment.policy.initial_arrays(experiment.benchmark.spec))

    @classmethod
    def of(cls, experiment: Experiment, policy: Policy) -> "SavedPolicy":
        """Copy the present state of a policy."""
        return cls(experiment, policy.state_arrays())

    def build(self) -> Policy:
        """Build the policy with these arrays.

        Raises:
            CheckpointError: The arrays do not fit the experiment's policy.
        """
        with _initial_randomness(self.experiment):
            policy = self.experiment.policy.build(self.experiment.benchmark.spec)
        policy.load_state_arrays(self.arrays)
        return policy

    def check(self) -> None:
        """Check that the arrays fit; see `build` for errors."""
        self.experiment.policy.check_arrays(self.experiment.benchmark.spec, self.arrays)

    def with_weights(self, weights: Weights) -> "SavedPolicy":
        """Return the policy with its trainable parameters replaced; the other arrays are shared, not copied."""
        return replace(self, arrays={**self.arrays, **{name: array_of(tensor) for name, tensor in tensors_of(weights)}})

    def with_instructions(self) -> "SavedPolicy":
        """Return the policy with what it stores of the experiment's instructions; see `PolicyConfig`."""
        arrays = self.experiment.policy.with_instructions(self.arrays, self.experiment.instructions)
        return replace(self, arrays=arrays)

    def components(self) -> Components:
        """Return what a runtime needs to post-train or evaluate this policy."""
        experiment = self.experiment
        return Components(
            build_policy=self.build,
            make_environment=experiment.benchmark.with_cameras(experiment.policy.cameras).make,  # render nothing else
            max_steps=experiment.max_steps,
            ppo=experiment.ppo,
            seed=experiment.seed,
            learner_threads=experiment.learner_threads,
            num_learners=experiment.num_learners,
            parameter_groups=experiment.policy.parameter_groups,
            max_tasks=experiment.benchmark.spec.max_tasks,
        )


@contextlib.contextmanager
def _initial_randomness(experiment: Experiment) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(torch_seed_of(experiment.seed, Purpose.POLICY_WEIGHTS))
        yield
