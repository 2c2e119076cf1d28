"""Configuration -> objects."""

from dataclasses import dataclass, field

import torch

from ript_ray.config.experiment import Experiment
from ript_ray.policies.quest.policy import QuestPolicy
from ript_ray.rl.protocols import Components
from ript_ray.seeding import Purpose, torch_seed_of
from ript_ray.types import Arrays


@dataclass(frozen=True)
class SavedPolicy:
    """All it takes to build an experiment's policy in any process: what a checkpoint holds.

    Attributes:
        experiment: Sizes of the policy, and the benchmark that fixes its inputs and outputs.
        arrays: Every parameter and buffer.
    """

    experiment: Experiment
    arrays: Arrays = field(repr=False)

    def __call__(self) -> QuestPolicy:
        """Build the policy with these weights.

        Raises:
            CheckpointError: The arrays do not fit the experiment's policy.
        """
        policy = new_policy(self.experiment)
        policy.load_state_arrays(self.arrays)
        return policy


def new_policy(experiment: Experiment) -> QuestPolicy:
    """The experiment's policy with random weights, the same in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(torch_seed_of(experiment.seed, Purpose.POLICY_WEIGHTS))
        return QuestPolicy(
            experiment.policy,
            action_dim=experiment.benchmark.action_dim,
            state_dims={name: experiment.benchmark.state_dims[name] for name in experiment.policy.sensors},
        )


def components_of(source: SavedPolicy) -> Components:
    """What a runtime needs to post-train or evaluate this policy."""
    experiment = source.experiment
    return Components(
        build_policy=source,
        make_environment=experiment.benchmark.with_cameras(
            experiment.policy.cameras
        ).make,  # no frame that nobody reads
        max_steps=experiment.max_steps,
        ppo=experiment.ppo,
        seed=experiment.seed,
        learner_threads=experiment.learner_threads,
        num_learners=experiment.num_learners,
    )
