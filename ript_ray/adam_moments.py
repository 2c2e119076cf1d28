"""What AdamW keeps of each parameter, as named arrays: with the weights, all that its next step depends on."""

from collections.abc import Mapping

import torch
from torch import nn

from ript_ray.errors import CheckpointError
from ript_ray.types import Arrays

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
