"""AdamW helpers: weight-decay groups, and the moments as named arrays."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from ript_ray.errors import CheckpointError
from ript_ray.policies.embedding import is_embedding
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


MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def moments_of(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> Arrays:
    """Return copies of the moments as `part/parameter` arrays; empty before the first step."""
    return {
        f"{part}/{name}": value.detach().cpu().numpy().copy()
        for name, parameter in parameters.items()
        for part, value in optimizer.state.get(parameter, {}).items()
    }


def put_moments(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], moments: Arrays) -> None:
    """Restore the arrays of `moments_of`.

    Raises:
        CheckpointError: A name is unknown or missing, or a shape differs.
    """
    wanted = {f"{part}/{name}" for name in parameters for part in MOMENTS} if moments else set()
    if moments.keys() != wanted:
        differing = ", ".join(sorted(moments.keys() ^ wanted))
        raise CheckpointError(f"the optimizer's state does not fit the policy: {differing}")
    for key, array in moments.items():
        part, name = key.split("/", 1)
        if array.shape != (() if part == "step" else tuple(parameters[name].shape)):
            raise CheckpointError(f"the optimizer's state does not fit the policy: {key} of shape {array.shape}")
        value = torch.from_numpy(array.copy())
        optimizer.state[parameters[name]][part] = value if part == "step" else value.to(parameters[name].device)
