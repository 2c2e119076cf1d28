"""Strict loading of named arrays into named tensors: the one loader of weights and optimizer moments."""

import itertools
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ript_ray.errors import CheckpointError, first_few
from ript_ray.types import Arrays

AnyArrays = Mapping[str, torch.Tensor] | Mapping[str, NDArray[np.generic]]


def copy_into(expected: Mapping[str, torch.Tensor], given: AnyArrays, problem: str) -> None:
    """Copy arrays into the tensors of the same names.

    Args:
        expected: The tensors to be overwritten, parameters included.
        given: What to copy; never changed or aliased.
        problem: First line of the error message, such as "the weights do not fit the policy".

    Raises:
        CheckpointError: Names, shapes or types differ; the message lists the first few, and nothing was copied.
    """
    if mismatches := state_dict_mismatches(expected, given):
        raise CheckpointError("\n  ".join([f"{problem}:", *first_few(mismatches)]))
    with torch.no_grad():
        for name, tensor in expected.items():
            value = given[name]
            tensor.copy_(value if isinstance(value, torch.Tensor) else tensor_of(value))


def array_of(tensor: torch.Tensor) -> NDArray[np.generic]:
    """Copy a tensor of any device into an array of the same type; that of bfloat16 is `ml_dtypes.bfloat16`."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()
    return tensor.numpy().copy()


def tensor_of(array: NDArray[np.generic]) -> torch.Tensor:
    """Copy an array, which may be read-only as those that Ray hands over, into a tensor of the same type."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def state_dict_mismatches(expected: AnyArrays, given: AnyArrays) -> list[str]:
    """List every entry that is missing, unknown, or of another shape or type than expected, in turn."""
    missing = [f"missing {name}" for name in expected if name not in given]
    unknown = [f"unknown {name}" for name in given if name not in expected]
    problems: list[str] = []
    for name in expected:
        if name not in given:
            continue
        wanted, found = expected[name], given[name]
        if tuple(found.shape) != tuple(wanted.shape):
            problems.append(f"{name} has shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
        elif _type_of(found) != _type_of(wanted):
            problems.append(f"{name} has type {_type_of(found)}, not {_type_of(wanted)}")
    in_turn = itertools.zip_longest(problems, missing, unknown)  # for messages that show the first few
    return [problem for row in in_turn for problem in row if problem]


def _type_of(array: torch.Tensor | NDArray[np.generic]) -> str:
    return str(array.dtype).removeprefix("torch.")


class ModulePolicy(nn.Module):
    """Mixin for policies whose checkpoint is their whole state dict."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return every parameter that takes gradients."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def state_arrays(self) -> Arrays:
        """Return copies of every persistent parameter and buffer."""
        return {name: array_of(value) for name, value in self.state_dict().items()}

    def load_state_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Copy arrays into every parameter and buffer; see `Policy.load_state_arrays`."""
        copy_into(self.state_dict(), arrays, "the weights do not fit the policy")
