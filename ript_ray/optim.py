"""AdamW: which parameters decay, and its moments as named arrays."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from ript_ray.errors import CheckpointError
from ript_ray.policies.embedding import is_embedding
from ript_ray.types import Arrays


def decay_groups(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, object]]:
    """AdamW groups: matrices decay; biases, normalisation weights and embeddings do not, as the authors have it.

    Args:
        parameters: Names and parameters. What has fewer than two dimensions is a bias, a scale or a normalisation's
            weight; an embedding is one that `ript_ray.policies.embedding` made.
        weight_decay: AdamW's, of those that decay.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for _, parameter in parameters:
        (decayed if parameter.ndim >= 2 and not is_embedding(parameter) else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def moments_of(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> Arrays:
    """Copies of the moments, by part and parameter; empty before the first step."""
    return {
        f"{part}/{name}": value.detach().cpu().numpy().copy()
        for name, parameter in parameters.items()
        for part, value in optimizer.state.get(parameter, {}).items()
    }


def put_moments(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], moments: Arrays) -> None:
    """Take over what `moments_of` gave.

    Raises:
        CheckpointError: A name is unknown or missing, or a shape differs.
    """
    wanted = {f"{part}/{name}" for name in parameters for part in MOMENTS} if moments else set()
    if moments.keys() != wanted:
        differing = ", ".join(sorted(moments.keys() ^ wanted))
        raise CheckpointError(f"the optimiser's state does not fit the policy: {differing}")
    for key, array in moments.items():
        part, name = key.split("/", 1)
        if array.shape != (() if part == "step" else tuple(parameters[name].shape)):
            raise CheckpointError(f"the optimiser's state does not fit the policy: {key} of shape {array.shape}")
        value = torch.from_numpy(array.copy())
        optimizer.state[parameters[name]][part] = value if part == "step" else value.to(parameters[name].device)
