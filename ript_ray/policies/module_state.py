"""A torch module's parameters and buffers as NumPy arrays, strictly by name and shape."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ript_ray.errors import CheckpointError
from ript_ray.types import Arrays


def module_arrays(module: nn.Module) -> Arrays:
    """Copy every persistent parameter and buffer."""
    return {name: value.detach().cpu().numpy().copy() for name, value in module.state_dict().items()}


def load_module_arrays(module: nn.Module, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Copy arrays into a module.

    Raises:
        CheckpointError: Names or shapes differ; the message lists every one, and nothing was copied.
    """
    state = module.state_dict()
    problems = [f"missing {name}" for name in state if name not in arrays]
    problems += [f"unknown {name}" for name in arrays if name not in state]
    problems += [
        f"{name} has shape {tuple(arrays[name].shape)}, not {tuple(state[name].shape)}"
        for name in state
        if name in arrays and tuple(arrays[name].shape) != tuple(state[name].shape)
    ]
    if problems:
        raise CheckpointError("the weights do not fit the policy:\n  " + "\n  ".join(problems))
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(torch.from_numpy(np.array(arrays[name])))
