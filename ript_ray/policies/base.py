"""What a policy must offer to be post-trained: act, score what was done, name what trains.

The contract fits tokenised policies (a decision is U tokens) and continuous chunk policies
(a decision is a chunk of actions scored per chunk step) alike. It says nothing of losses or Ray.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ript_ray.types import Arrays


@dataclass(frozen=True)
class Decisions:
    """The answer to one query for a batch of rollouts.

    Attributes:
        actions_BCA: The actions to execute, float32 in the environment's units.
        record: What `log_probs` needs to score these decisions again, B rows per array.
        log_probs_BU: Log-probability of each scored unit under the policy that acted, float32.
        valid_BU: Which units the learner may count, bool.
    """

    actions_BCA: NDArray[np.float32]
    record: Arrays
    log_probs_BU: NDArray[np.float32]
    valid_BU: NDArray[np.bool_]


class Policy(Protocol):
    """A stochastic policy over action chunks."""

    def act(
        self,
        observations: Arrays,
        instructions: Sequence[str],
        generators: Sequence[np.random.Generator],
    ) -> Decisions:
        """Decide for B rollouts at once, without gradients.

        Args:
            observations: B rows per array.
            instructions: One per row.
            generators: One per row; row b draws from `generators[b]` alone, so a rollout's
                randomness does not depend on its neighbours.
        """
        ...

    def log_probs(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities (N, U) of recorded decisions under the present parameters, with gradients."""
        ...

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that post-training changes, by name, in a fixed order."""
        ...

    def state_arrays(self) -> Arrays:
        """Every parameter and buffer that a checkpoint must hold, copied."""
        ...

    def load_state_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over the arrays of `state_arrays`.

        Raises:
            CheckpointError: A name is missing or unknown, or a shape differs; all are listed.
        """
        ...
