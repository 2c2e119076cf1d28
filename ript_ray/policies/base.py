"""The policy contract: what a policy must offer to be trained here, and what its configuration must.

It fits tokenized policies (a decision is U tokens) and continuous chunk policies (a decision is a chunk of actions
scored per chunk step) alike, and says nothing of losses or Ray.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import EnvironmentSpec
from ript_ray.checks import require
from ript_ray.policies.supervised import NoSFT, SFTConfig
from ript_ray.types import Arrays

if TYPE_CHECKING:
    import torch  # configurations must be readable without it


@dataclass(frozen=True)
class Decisions:
    """The answer to one query for a batch of rollouts.

    Attributes:
        actions_BCA: The actions to execute, float32, each entry in [-1, 1].
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
            generators: One per row; row b draws from `generators[b]` alone, so that a rollout's randomness does not
                depend on its neighbours.
        """
        ...

    def log_probs(self, record: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
        """Return log-probabilities (N, U) of recorded decisions under the current parameters, with gradients."""
        ...

    def trainable(self) -> "dict[str, torch.nn.Parameter]":
        """Return the parameters that post-training changes, by name, in a fixed order.

        Each name is a key of `state_arrays`.
        """
        ...

    def state_arrays(self) -> Arrays:
        """Return copies of all arrays that `PolicyConfig.build` does not recreate.

        A policy trained from scratch returns every parameter and buffer; one that fine-tunes a large base model
        returns what changed, and its configuration names the base.
        """
        ...

    def load_state_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Copy the arrays of `state_arrays` into the policy.

        Raises:
            CheckpointError: Names, shapes or types differ; all differences are listed.
        """
        ...


class PolicyConfig(ABC):
    """The configuration of a policy: a frozen dataclass with a field `kind`. It builds what it describes.

    Nothing here may import a model library before `build`: configuration files and `--help` read this class, too.

    Attributes:
        kind: The policy's name in configuration files and on the command line.
        cameras: Cameras of the benchmark that the policy reads.
        sensors: Low-dimensional sensors of the benchmark that the policy reads.
        chunk_length: Actions predicted per query, in environment steps.
        sft_type: Settings of its supervised stages.
        semantic_fields: Fields that change what weights mean, though not always their shapes: weights are taken over
            only by a configuration that agrees in them.
    """

    kind: str
    cameras: tuple[str, ...] = ()
    sensors: tuple[str, ...] = ()
    chunk_length: int = 1
    sft_type: ClassVar[type[SFTConfig]] = NoSFT
    semantic_fields: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def build(self, spec: EnvironmentSpec) -> Policy:
        """Build the policy with random weights from torch's global generator, ready to act.

        Args:
            spec: The environments that it will act in; it has the cameras and sensors that the policy reads.
        """

    def card(self, spec: EnvironmentSpec, arrays: Arrays) -> dict[str, str]:
        """Return rows for the model card, by heading."""
        return {"policy": self.kind}

    def base_sha256(self) -> str | None:
        """Return the SHA-256 of what `build` loads from elsewhere, such as a base model; none if it loads nothing.

        Checkpoints hold it, so that weights are never combined with another base.
        """
        return None

    def initial_arrays(self, spec: EnvironmentSpec) -> Arrays:
        """Return `state_arrays` of a freshly built policy; override it where building the policy is expensive."""
        return self.build(spec).state_arrays()

    def check_arrays(self, spec: EnvironmentSpec, arrays: Arrays) -> None:
        """Check that `state_arrays` of an earlier policy fit this configuration.

        Override it where building the policy is expensive.

        Raises:
            CheckpointError: They do not; all differences are listed.
        """
        self.build(spec).load_state_arrays(arrays)

    def require_fit(self, spec: EnvironmentSpec) -> None:
        """Check that a benchmark offers what the policy reads.

        Raises:
            ConfigError: A camera or sensor is missing.
        """
        for what, names, offered in (
            ("sensor", self.sensors, [*spec.state_dims]),
            ("camera", self.cameras, [*spec.image_shapes]),
        ):
            for name in names:
                known = ", ".join(offered) or "none"
                require(name in offered, f"policy.{what}s: {spec.name} has no {what} {name!r}; it has {known}")
