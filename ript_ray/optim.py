"""AdamW helpers: parameter groups, weight decay, the cosine schedule, and the moments as named arrays."""

import math
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import nn

from ript_ray.checks import require
from ript_ray.policies.embedding import is_embedding
from ript_ray.policies.state_dict import array_of, copy_into
from ript_ray.types import Arrays


def decay_groups(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, object]]:
    """Return AdamW groups: matrices decay; biases, normalization weights and embeddings do not.

    Source: authors' code.

    Args:
        parameters: Names and parameters. Those with fewer than two dimensions count as biases, scales or
            normalization weights; embeddings are those made by `ript_ray.policies.embedding`.
        weight_decay: Of the decayed group.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for _, parameter in parameters:
        (decayed if parameter.ndim >= 2 and not is_embedding(parameter) else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def partition(
    parameters: Mapping[str, nn.Parameter], names: Collection[str], prefixes: Mapping[str, str]
) -> dict[str, dict[str, nn.Parameter]]:
    """Return parameters by group, in their order; under "", first, those of none of the groups `names`.

    Args:
        parameters: The parameters, by name.
        names: The groups to be told apart.
        prefixes: By group: the prefix of its parameters' names.

    Raises:
        ConfigError: A group has no parameter.
    """
    parts: dict[str, dict[str, nn.Parameter]] = {"": {}, **{name: {} for name in names}}
    for name, parameter in parameters.items():
        group = next((group for group in names if name.startswith(prefixes[group])), "")
        parts[group][name] = parameter
    for group in names:
        require(bool(parts[group]), f"parameter group {group}: no trainable parameter begins with {prefixes[group]!r}")
    return {group: part for group, part in parts.items() if part}


def cosine(initial: float, final: float, done: float) -> float:
    """Return the value of a cosine schedule from `initial` to `final`, of which the fraction `done` has passed."""
    return final + 0.5 * (1.0 + math.cos(math.pi * done)) * (initial - final)


def moments_of(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> Arrays:
    """Return copies of the moments as `part/parameter` arrays; empty before the first step.

    A parameter that never had a gradient has none: its moments are those before its first step.
    """
    if not any(optimizer.state.get(parameter) for parameter in parameters.values()):
        return {}
    return {
        f"{part}/{name}": array_of(value)
        for name, parameter in parameters.items()
        for part, value in (optimizer.state.get(parameter) or _new_moments(parameter)).items()
    }


def put_moments(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], moments: Arrays) -> None:
    """Restore the arrays of `moments_of`.

    Raises:
        CheckpointError: Names, shapes or types differ; nothing was restored.
    """
    if not moments:
        return
    states = {name: _new_moments(parameter) for name, parameter in parameters.items()}
    expected = {f"{part}/{name}": value for name, state in states.items() for part, value in state.items()}
    copy_into(expected, moments, "the optimizer's state does not fit the policy")
    for name, state in states.items():
        optimizer.state[parameters[name]].update(state)


def _new_moments(parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    """State of AdamW before the first step; torch keeps the step count on the CPU."""
    return {
        "exp_avg": torch.zeros_like(parameter, requires_grad=False),
        "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        "step": torch.zeros((), dtype=torch.float32, device="cpu"),
    }
