"""Versioned snapshots of the trainable parameters, as one flat, checksummed buffer.

NumPy rather than torch: Ray passes NumPy arrays zero-copy, so readers on one node share the buffer's memory.
Receivers must copy out of it; writing into it would change the weights of every other reader.
"""

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from ript_ray.errors import CheckpointError, WeightsError
from ript_ray.policies.base import Policy
from ript_ray.policies.state_dict import copy_into
from ript_ray.types import Version, Weights


def snapshot(policy: Policy, version: Version) -> Weights:
    """Copy the trainable parameters of a policy into one buffer."""
    layout, parts = [], []
    for name, parameter in policy.trainable().items():
        array = _as_bytes(parameter.detach())
        layout.append((name, tuple(parameter.shape), str(parameter.dtype)))
        parts.append(array)
    buffer = np.concatenate(parts)
    buffer.setflags(write=False)
    return Weights(version, _checksum(buffer), tuple(layout), buffer)


def apply(weights: Weights, policy: Policy) -> str:
    """Copy weights into a policy.

    Returns:
        The checksum of the received buffer.

    Raises:
        WeightsError: The buffer is corrupt, or names, shapes or dtypes differ from the policy's.
    """
    received = _checksum(weights.buffer)
    if received != weights.checksum:
        raise WeightsError(
            f"version {weights.version} of the weights is corrupt: checksum {received}, not {weights.checksum}"
        )
    problem = f"version {weights.version} of the weights does not fit the policy"
    try:
        copy_into(policy.trainable(), dict(tensors_of(weights)), problem)
    except CheckpointError as error:
        raise WeightsError(str(error)) from error
    return received


def tensors_of(weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the name and a copy of each parameter."""
    start = 0
    for name, shape, dtype_name in weights.layout:
        dtype: torch.dtype = getattr(torch, dtype_name.removeprefix("torch."))
        end = start + math.prod(shape) * dtype.itemsize
        yield name, torch.from_numpy(weights.buffer[start:end].copy()).view(dtype).view(shape)
        start = end


def _as_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    return tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy()


def _checksum(buffer: NDArray[np.uint8]) -> str:
    return hashlib.sha256(buffer.data).hexdigest()
