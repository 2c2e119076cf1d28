"""Data-parallel learners: each takes a shard of every minibatch, and all apply the same optimizer step.

All gradients and a few metrics are packed into one flat buffer, so a step costs one all-reduce regardless of
the number of parameters.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

import torch
from torch import distributed
from torch.distributed import Store  # type: ignore[attr-defined]


class GradientSync(Protocol):
    """Gradient synchronization between learners."""

    @property
    def rows(self) -> slice:
        """Rows of a minibatch that this learner processes."""
        ...

    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sum each tensor over all learners, in place."""
        ...


class NoSync:
    """Single learner: nothing to synchronize."""

    rows = slice(None)

    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Do nothing."""


class ProcessGroup:
    """Several learners over torch.distributed: gloo on CPU, nccl on GPU."""

    def __init__(self, store: Store, *, rank: int, size: int, on_gpu: bool, timeout_s: float):
        """Join the process group; blocks until all learners have joined.

        Args:
            store: Rendezvous store.
            rank: Rank of this learner, from 0.
            size: Number of learners.
            on_gpu: Whether the gradients are on GPUs.
            timeout_s: Timeout for joining and for every all-reduce.
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
        """Sum all tensors over all learners in one float32 all-reduce, in place."""
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        distributed.all_reduce(flat)
        start = 0
        for tensor in tensors:
            end = start + tensor.numel()
            tensor.copy_(flat[start:end].view_as(tensor))
            start = end
