"""The learner processes of one run: each works on a share of every minibatch, and all take the same step.

The gradients of all parameters and a few figures travel as one flat buffer, so a step costs one all-reduce
whatever the number of parameters.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

import torch
from torch import distributed
from torch.distributed import Store  # type: ignore[attr-defined]


class GradientSync(Protocol):
    """Who shares the work."""

    @property
    def rows(self) -> slice:
        """Which rows of a minibatch are this process's."""
        ...

    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in place."""
        ...


class NoSync:
    """A learner without peers."""

    rows = slice(None)

    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Nothing to add."""


class ProcessGroup:
    """Learners that talk through torch.distributed: gloo between CPUs, nccl between GPUs."""

    def __init__(self, store: Store, *, rank: int, size: int, on_gpu: bool, timeout_s: float):
        """Join the group; returns once all have.

        Args:
            store: Where the learners find each other.
            rank: Number of this one, from 0.
            size: How many there are.
            on_gpu: Whether gradients lie on GPUs.
            timeout_s: Longest wait for the others, here and in every step.
        """
        self.rows = slice(rank, None, size)
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout_s),
        )

    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """One all-reduce over all of them, as float32."""
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        distributed.all_reduce(flat)
        start = 0
        for tensor in tensors:
            end = start + tensor.numel()
            tensor.copy_(flat[start:end].view_as(tensor))
            start = end
