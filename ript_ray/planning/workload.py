"""The sizes of an experiment's rollouts, groups and minibatches."""

import math
from dataclasses import dataclass

from ript_ray.config.experiment import Experiment
from ript_ray.planning.footprint import Footprint


@dataclass(frozen=True)
class Workload:
    """What is computed with and sent around, at most: rollouts that succeed end earlier.

    Attributes:
        experiment: What is learned.
        footprint: Of its policy.
    """

    experiment: Experiment
    footprint: Footprint

    @property
    def decisions_per_rollout(self) -> int:
        """Queries of a rollout of full length."""
        return math.ceil(self.experiment.max_steps / self.footprint.executed)

    @property
    def rollouts_per_request(self) -> int:
        """Rollouts that act as one batch."""
        sampling = self.experiment.sampling
        return sampling.rollouts_per_request or sampling.group_size

    @property
    def rollout_bytes(self) -> int:
        """What the learner gets of a rollout."""
        return self.decisions_per_rollout * self.footprint.decision_bytes

    @property
    def group_bytes(self) -> int:
        """What the learner gets of a group."""
        return self.experiment.sampling.group_size * self.rollout_bytes

    @property
    def minibatch_rollouts(self) -> int:
        """Rollouts of a minibatch that one learner works on."""
        experiment = self.experiment
        whole = min(experiment.ppo.minibatch_rollouts, experiment.sampling.batch_rollouts)
        return math.ceil(whole / experiment.num_learners)

    @property
    def decisions_per_pass(self) -> int:
        """Decisions of a forward and backward pass."""
        whole = self.minibatch_rollouts * self.decisions_per_rollout
        return min(self.experiment.ppo.micro_batch_decisions or whole, whole)

    @property
    def encoding_bytes(self) -> int:
        """What a learner keeps of the encodings of its decisions during an update."""
        ppo = self.experiment.ppo
        if ppo.num_passes == 1:
            return 0
        rollouts = math.ceil(self.experiment.sampling.batch_rollouts / self.experiment.num_learners)
        whole = rollouts * self.decisions_per_rollout * self.footprint.encoding_bytes
        return min(ppo.encoding_cache_bytes, whole)
