"""The frozen weights of a policy, sharded over the learners by torch's FSDP2.

Each learner keeps its part of them. Just before a unit of the policy runs, forward or backward, it fetches the others'
parts, and forgets them right after: what it computes are the bits of a whole copy. Trained weights stay whole in every
learner, and their gradients are summed as ever (`data_parallel`).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, share_comm_ctx

from ript_ray.policies.base import ShardablePolicy

BACKEND = "gloo_at_host"
"""Name for torch of gloo as `data_parallel` opens it."""

Waiting = Callable[[], AbstractContextManager[None]]
"""Says that a learner waits for others, and turns the loss of one into a `PeerError`."""


def open_mesh(
    store: Store, rank: int, size: int, *, timeout: timedelta, device: str, open_gloo: Callable[..., Any]
) -> DeviceMesh:
    """Open torch's default process group, once in a process, and return the mesh of all learners, which needs it.

    Args:
        store: The rendezvous store.
        rank: Rank of this learner.
        size: Number of learners.
        timeout: Longest wait for others.
        device: Where the learners compute.
        open_gloo: Opens gloo at one address, from store, rank, size and timeout; torch's own listens wherever the host
            name leads.
    """
    backend = "nccl"
    if device == "cpu":
        backend = f"{device}:{BACKEND}"
        dist.Backend.register_backend(BACKEND, open_gloo, devices=[device])
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    return init_device_mesh(device, (size,))


def shard_base(policy: ShardablePolicy, mesh: DeviceMesh, waiting: Waiting) -> None:
    """Replace the frozen weights of the policy's units by this learner's parts, on the device of the mesh.

    Args:
        policy: A policy with all its weights, on the CPU.
        mesh: The learners.
        waiting: Entered to fetch the parts of others.
    """
    units = [*policy.shard_units()]
    trained = {*policy.trainable().values()}
    gather = _Gather(waiting)
    for unit in units:
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
        unit.set_custom_all_gather(gather)  # type: ignore[operator]
    share_comm_ctx(units)  # type: ignore[arg-type]


class _Gather:
    """FSDP2's own way to fetch weights, which says when it waits and who is lost."""

    def __init__(self, waiting: Waiting):
        self._waiting = waiting

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        with self._waiting():
            return dist.all_gather_single(output_tensor, input_tensor, group=group, async_op=async_op)
