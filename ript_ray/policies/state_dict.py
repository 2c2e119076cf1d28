"""A torch module's parameters and buffers as NumPy arrays, strictly by name, shape and type."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ript_ray.errors import CheckpointError
from ript_ray.types import Arrays

AnyArrays = Mapping[str, torch.Tensor] | Mapping[str, NDArray[np.generic]]


def module_arrays(module: nn.Module) -> Arrays:
    """Copy every persistent parameter and buffer."""
    return {name: value.detach().cpu().numpy().copy() for name, value in module.state_dict().items()}


def load_module_arrays(module: nn.Module, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Copy arrays into a module.

    Raises:
        CheckpointError: Names, shapes or types differ; the message lists every one, and nothing was copied.
    """
    state = module.state_dict()
    problems = state_dict_mismatches(state, arrays)
    if problems:
        raise CheckpointError("the weights do not fit the policy:\n  " + "\n  ".join(problems))
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(torch.from_numpy(np.array(arrays[name])))


def state_dict_mismatches(expected: AnyArrays, given: AnyArrays) -> list[str]:
    """Every entry that is missing, unknown, or of another shape or type than expected, in words."""
    problems = [f"missing {name}" for name in expected if name not in given]
    problems += [f"unknown {name}" for name in given if name not in expected]
    for name in expected:
        if name not in given:
            continue
        wanted, found = expected[name], given[name]
        if tuple(found.shape) != tuple(wanted.shape):
            problems.append(f"{name} has shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
        elif _type_of(found) != _type_of(wanted):
            problems.append(f"{name} has type {_type_of(found)}, not {_type_of(wanted)}")
    return problems


def _type_of(array: torch.Tensor | NDArray[np.generic]) -> str:
    return str(array.dtype).removeprefix("torch.")
