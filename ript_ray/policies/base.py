"""Interfaces of policies and of their configurations.

They fit tokenized policies (a decision is U tokens) and continuous chunk policies (a decision is a chunk of actions,
scored per chunk step), and are independent of losses and of Ray.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import EnvironmentSpec
from ript_ray.checks import require
from ript_ray.policies.supervised import NoSFT, SFTConfig
from ript_ray.types import Arrays

if TYPE_CHECKING:
    import torch  # configurations must be readable without importing it


@dataclass(frozen=True)
class Decisions:
    """The output of one policy query for a batch of rollouts.

    Attributes:
        actions_BCA: The actions to execute, float32, each entry in [-1, 1].
        record: What `log_probs` needs to rescore these decisions, B rows per array.
        log_probs_BU: Log-probability of each scored unit under the sampling policy, float32.
        valid_BU: Mask of the units that count in the loss, bool.
    """

    actions_BCA: NDArray[np.float32]
    record: Arrays
    log_probs_BU: NDArray[np.float32]
    valid_BU: NDArray[np.bool_]


class Policy(Protocol):
    """A stochastic policy over action chunks.

    To be used on GPUs it must be a `torch.nn.Module`: its `to(device)` is called once, after it was built on the CPU.
    """

    def act(
        self,
        observations: Arrays,
        instructions: Sequence[str],
        generators: Sequence[np.random.Generator],
    ) -> Decisions:
        """Sample the actions of B rollouts, without gradients.

        Args:
            observations: B rows per array.
            instructions: One per row.
            generators: One per row; row b draws from `generators[b]` only, so that the randomness of a rollout does
                not depend on its batch.
        """
        ...

    def log_probs(self, record: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
        """Return the log-probabilities (N, U) of recorded decisions under the current parameters, with gradients.

        With `ppo.parallel_passes` above 1, several threads call it at the same time.

        Args:
            record: Rows of the arrays of `Decisions.record`, on the device of the policy.
        """
        ...

    def trainable(self) -> "dict[str, torch.nn.Parameter]":
        """Return the parameters that post-training changes, by name, in a fixed order.

        Their names are keys of `state_arrays`.
        """
        ...

    def state_arrays(self) -> Arrays:
        """Return copies of all arrays that `PolicyConfig.build` does not recreate.

        A policy trained from scratch returns every parameter and buffer; one that fine-tunes a large base model
        returns only what training changes, and its configuration names the base model.
        """
        ...

    def load_state_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Copy the arrays of `state_arrays` into the policy.

        Raises:
            CheckpointError: Names, shapes or types differ.
        """
        ...


@runtime_checkable
class DeterministicPolicy(Policy, Protocol):
    """A policy that can act without chance as well, e.g. on the mean of its distribution."""

    def act_deterministically(self, observations: Arrays, instructions: Sequence[str]) -> NDArray[np.float32]:
        """Return the actions of B rollouts, float32 (B, C, A) in [-1, 1]; see `act` for the arguments."""
        ...


@runtime_checkable
class EncodingPolicy(Policy, Protocol):
    """A policy that reads a record in two steps, the first of which no trained parameter takes part in."""

    def encode(self, record: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
        """Return what post-training does not change of recorded decisions, without gradients, N rows per tensor.

        Given the record and these, `log_probs` returns what it does for the record alone, up to rounding, and does not
        compute them again. The learner keeps them for the passes of an update (`ppo.encoding-cache-bytes`).

        Args:
            record: See `log_probs`.
        """
        ...


@runtime_checkable
class ShardablePolicy(Policy, Protocol):
    """A policy with frozen weights that several learners can share, each holding a part of them."""

    def shard_units(self) -> "Sequence[torch.nn.Module]":
        """Return the modules whose frozen weights are fetched together, such as the blocks of a transformer.

        `log_probs` runs them by calling them, the same ones in the same order whatever the rows are, and reads their
        weights nowhere else. None contains another, and none of their frozen weights is in `state_arrays`.
        """
        ...


class PolicyConfig(ABC):
    """Base class of policy configurations: frozen dataclasses with a field `kind` that build what they describe.

    They must not import a model library before `build`: configuration files and `--help` use these classes, too.

    Attributes:
        kind: The policy's name in configuration files and on the command line.
        cameras: Cameras of the benchmark that the policy reads.
        sensors: Low-dimensional sensors of the benchmark that the policy reads.
        chunk_length: Actions predicted per query, in environment steps.
        sft_type: Class of the settings of its supervised stages.
        parameter_groups: Groups of trainable parameters that may have a learning rate and a gradient norm of their own
            (`ppo.learning-rates`, `ppo.max-grad-norms`): by name, the prefix of their parameters' names.
        semantic_fields: Fields that change the meaning of weights, though not always their shapes: an experiment
            starts only from weights whose configuration agrees in them.
        is_deterministic: Whether `build` returns a `DeterministicPolicy`: `evaluation.deterministic` is then allowed.
        is_shardable: Whether `build` returns a `ShardablePolicy`: `cluster.shard-base` is then allowed.
    """

    kind: str
    cameras: tuple[str, ...] = ()
    sensors: tuple[str, ...] = ()
    chunk_length: int = 1
    sft_type: ClassVar[type[SFTConfig]] = NoSFT
    parameter_groups: ClassVar[Mapping[str, str]] = {}
    semantic_fields: ClassVar[tuple[str, ...]] = ()
    is_deterministic: ClassVar[bool] = False
    is_shardable: ClassVar[bool] = False

    @abstractmethod
    def build(self, spec: EnvironmentSpec) -> Policy:
        """Build the policy with random weights from torch's global generator, ready to act.

        Args:
            spec: The environments that the policy acts in, with the cameras and sensors that it reads.
        """

    def build_empty(self, spec: EnvironmentSpec, instructions: Sequence[str]) -> Policy:
        """Build the policy on torch's meta device: names, shapes and types, no values. `ript-ray plan` traces it.

        Override it where `build` reads values, or where the policy stores something of each instruction.

        Args:
            spec: See `build`.
            instructions: What the policy must know to act, see `with_instructions`; the values do not matter.
        """
        import torch

        with torch.device("meta"):
            return self.build(spec)

    def card(self, spec: EnvironmentSpec, arrays: Arrays) -> dict[str, str]:
        """Return rows for the model card, by heading."""
        return {"policy": self.kind}

    def unused_fields(self) -> dict[str, str]:
        """Return the fields that have no effect with the values of the others, and why: typing one is a mistake."""
        return {}

    def base_sha256(self) -> str | None:
        """Return the SHA-256 of the base model that `build` loads, or None if it loads nothing.

        Checkpoints contain it, so that weights are never combined with another base model.
        """
        return None

    def finished_stages(self) -> tuple[str, ...]:
        """Return the supervised stages that need not be trained any more, as `build` loads their result."""
        return ()

    def initial_arrays(self, spec: EnvironmentSpec) -> Arrays:
        """Return `state_arrays` of a freshly built policy; override it where building the policy is expensive."""
        return self.build(spec).state_arrays()

    def with_instructions(self, arrays: Arrays, instructions: Sequence[str]) -> Arrays:
        """Return `state_arrays` with what the policy stores of each instruction, such as text features.

        By default it stores nothing. Called where a run or an evaluation begins, before any process builds the policy.

        Raises:
            ConfigError: It is not known of an instruction.
        """
        return arrays

    def check_arrays(self, spec: EnvironmentSpec, arrays: Arrays) -> None:
        """Check that saved `state_arrays` fit this configuration; override it where building the policy is expensive.

        Raises:
            CheckpointError: They do not.
        """
        self.build(spec).load_state_arrays(arrays)

    def require_deterministic(self) -> None:
        """Check that the policy can act without chance.

        Raises:
            ConfigError: It cannot.
        """
        require(
            self.is_deterministic,
            f"evaluation.deterministic: policy {self.kind} has no deterministic mode, it only samples; leave it off, "
            "or give the policy `act_deterministically` and its configuration `is_deterministic`",
        )

    def require_trained_on(self, label: str) -> None:  # noqa: B027, most policies have nothing to check
        """Check that what the policy was trained on before fits a benchmark, by the benchmark's label.

        Raises:
            ConfigError: It does not.
        """

    def require_fit(self, spec: EnvironmentSpec) -> None:
        """Check that a benchmark has the cameras and sensors that the policy reads.

        Raises:
            ConfigError: A camera or sensor is missing.
        """
        for what, names, available in (
            ("sensor", self.sensors, [*spec.state_dims]),
            ("camera", self.cameras, [*spec.image_shapes]),
        ):
            for name in names:
                known = ", ".join(available) or "none"
                require(name in available, f"policy.{what}s: {spec.name} has no {what} {name!r}; it has {known}")
