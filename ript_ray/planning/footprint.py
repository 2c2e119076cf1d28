"""What a policy takes, without memory for it: its tensors are torch's fake ones, which have a shape and no values.

A query and a pass of the learner are run on them, and the memory that is in use is counted at each operation. What does
not depend on a weight, such as prompts and images of the record, is computed as ever.
"""

import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ript_envs.contract import EnvironmentSpec
from ript_ray.checks import require
from ript_ray.optim import partition
from ript_ray.policies.base import Decisions, EncodingPolicy, Policy, PolicyConfig
from ript_ray.types import Arrays

TRACED = (1, 8)
"""Decisions whose passes are traced; memory of more of them grows as it does between these."""


@dataclass(frozen=True)
class Footprint:
    """What one copy of a policy takes.

    Attributes:
        weights: Bytes of all parameters and buffers, by type.
        trained: Bytes of those that are trained, by parameter group; "" for those of none.
        num_weights: Numbers in all of them.
        num_trained: Numbers in those that are trained.
        executed: Actions that a query leads to, C.
        decision_bytes: Bytes that the learner gets of a query: its record, log-probabilities and mask.
        acting_bytes: Bytes in use during a query for all rollouts of a request, beyond the weights.
        learning_bytes: Bytes in use during a pass of the learner, by its number of decisions (`TRACED`), beyond weights
            and gradients.
        encoding_bytes: Bytes that the learner can keep of a decision for the passes of an update.
    """

    weights: Mapping[str, int]
    trained: Mapping[str, int]
    num_weights: int
    num_trained: int
    executed: int
    decision_bytes: int
    acting_bytes: int
    learning_bytes: Mapping[int, int]
    encoding_bytes: int

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(self.weights.values())

    @property
    def trained_bytes(self) -> int:
        """Bytes of what is trained, and so of a broadcast and of the gradients."""
        return sum(self.trained.values())

    def pass_bytes(self, num_decisions: int) -> int:
        """Return the bytes in use during a pass of the learner over decisions, beyond weights and gradients."""
        (few, few_bytes), (more, more_bytes) = self.learning_bytes.items()
        each = (more_bytes - few_bytes) / (more - few)
        return max(0, round(few_bytes + (num_decisions - few) * each))


def footprint_of(config: PolicyConfig, spec: EnvironmentSpec, instructions: Sequence[str], num_rows: int) -> Footprint:
    """Trace a policy.

    Args:
        config: Its configuration.
        spec: The environments that it acts in.
        instructions: What it is asked to do; a query is traced with the longest.
        num_rows: Rollouts of a request.

    Raises:
        RiptError: A file that its sizes are read from is missing or does not fit.
        ConfigError: It is no torch module, or does something with its numbers that cannot be traced.
    """
    policy = config.build_empty(spec, instructions)
    require(isinstance(policy, nn.Module), f"policy.kind {config.kind}: only a torch module can be planned with")
    assert isinstance(policy, nn.Module)
    longest = max(instructions, key=len)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        policy.to_empty(device="cpu")
    try:
        decisions, acting_bytes = _trace_query(policy, _observations(spec, num_rows), [longest] * num_rows, fake)
        learning_bytes = {number: _trace_pass(policy, _tiled(decisions.record, number), fake) for number in TRACED}
        encoding_bytes = _trace_encoding(policy, _tiled(decisions.record, 1), fake)
    except (RuntimeError, TypeError) as error:
        text = str(error).partition("\n")[0]
        require(False, f"policy.kind {config.kind} cannot be planned with, its query or pass is not traceable: {text}")
    tensors = [*policy.parameters(), *policy.buffers()]
    groups = partition(policy.trainable(), config.parameter_groups, config.parameter_groups)
    return Footprint(
        weights=_bytes_by_type(tensors),
        trained={group: sum(value.nbytes for value in part.values()) for group, part in groups.items()},
        num_weights=sum(value.numel() for value in tensors),
        num_trained=sum(value.numel() for value in policy.trainable().values()),
        executed=decisions.actions_BCA.shape[1],
        decision_bytes=sum(array[:1].nbytes for array in _recorded(decisions)),
        acting_bytes=acting_bytes,
        learning_bytes=learning_bytes,
        encoding_bytes=encoding_bytes,
    )


def _observations(spec: EnvironmentSpec, num_rows: int) -> Arrays:
    sensors: Arrays = {name: np.zeros((num_rows, length), np.float32) for name, length in spec.state_dims.items()}
    return sensors | {name: np.zeros((num_rows, *shape), np.uint8) for name, shape in spec.image_shapes.items()}


def _recorded(decisions: Decisions) -> list[np.ndarray[Any, Any]]:
    return [*decisions.record.values(), decisions.log_probs_BU, decisions.valid_BU]


def _tiled(record: Arrays, num_rows: int) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.repeat(array[:1], num_rows, axis=0)) for name, array in record.items()}


def _bytes_by_type(tensors: Sequence[torch.Tensor]) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
    return dict(sizes)


def _trace_query(
    policy: Policy, observations: Arrays, instructions: Sequence[str], fake: FakeTensorMode
) -> tuple[Decisions, int]:
    generators = [np.random.default_rng(row) for row in range(len(instructions))]
    with fake, _Usage(policy) as usage, _Values():
        decisions = policy.act(observations, instructions, generators)
    return decisions, usage.highest


def _trace_pass(policy: Policy, record: Mapping[str, torch.Tensor], fake: FakeTensorMode) -> int:
    """Trace a pass whose gradients are added to those of earlier ones."""
    parameters = policy.trainable().values()
    with fake:
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
    with fake, _Usage(policy) as usage, _Values():
        policy.log_probs(record).sum().backward()
    return usage.highest


def _trace_encoding(policy: Policy, record: Mapping[str, torch.Tensor], fake: FakeTensorMode) -> int:
    if not isinstance(policy, EncodingPolicy):
        return 0
    with fake, _Values():
        return sum(tensor.nbytes for tensor in policy.encode(record).values())


class _Values(TorchFunctionMode):
    """Computes with values what has them; what is fake becomes an array of zeros, and passes a check of its values."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        fakes = [value for value in tree_leaves((args, kwargs)) if isinstance(value, FakeTensor)]
        if not fakes:
            with unset_fake_temporarily():
                return func(*args, **(kwargs or {}))
        if func is torch.Tensor.__bool__:
            return True
        if func is torch.Tensor.numpy:
            return np.zeros(fakes[0].shape, str(fakes[0].dtype).removeprefix("torch."))
        return func(*args, **(kwargs or {}))


class _Usage(TorchDispatchMode):
    """Counts the memory of tensors that operations make, as long as something refers to them.

    Attributes:
        highest: Most bytes that were in use at a time.
    """

    def __init__(self, policy: Policy):
        """Count nothing that the policy has already: views of its weights are no memory."""
        super().__init__()
        assert isinstance(policy, nn.Module)
        owned = [*policy.parameters(), *policy.buffers()]
        owned += [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
        self.highest = 0
        self._now = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in owned}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, FakeTensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self._now += storage.nbytes()
        self.highest = max(self.highest, self._now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._now -= self._sizes.pop(key)
