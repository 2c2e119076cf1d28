"""Data-parallel learners: each takes a shard of every minibatch, and all apply the same optimizer step.

All gradients and a few metrics are packed into one flat buffer, so a step costs one all-reduce regardless of
the number of parameters.
"""

import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

import torch
from torch import nn
from torch.distributed import PrefixStore, ProcessGroupGloo, Store, TCPStore  # type: ignore[attr-defined]

from ript_ray.errors import PeerError


@dataclass(frozen=True)
class Rendezvous:
    """Where learners find each other.

    Attributes:
        host: Address of the learner with the rendezvous store.
        port: Port of the store.
        secret: Begins the name of every entry. The store answers anyone who reaches its port, but learners use only
            what was written by someone who knows the secret.
    """

    host: str
    port: int
    secret: str = field(repr=False)


def open_store(host: str) -> tuple[Rendezvous, Store]:
    """Open a rendezvous store that listens at the address `host` alone."""
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listener.getsockname()[1]
    descriptor = listener.detach()  # the store closes it
    store = TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=descriptor)
    return Rendezvous(host, port, secrets.token_hex(16)), store


class GradientSync(Protocol):
    """Gradient synchronization between learners.

    Attributes:
        is_waiting: Whether the learner is in an all-reduce, so that others may keep it waiting.
    """

    is_waiting: bool

    @property
    def rows(self) -> slice:
        """Rows of a minibatch that this learner processes."""
        ...

    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sum each tensor over all learners, in place.

        Raises:
            PeerError: Another learner died, or did not answer in time.
        """
        ...

    def sum_gradients(self, parameters: Sequence[nn.Parameter], metrics: torch.Tensor) -> None:
        """Sum the gradients of the parameters, and `metrics`, over all learners, in place.

        A parameter without a gradient in some learners counts as zero there; without one in all, it keeps none.
        """
        ...


class NoSync:
    """Single learner: nothing to synchronize."""

    rows = slice(None)
    is_waiting = False

    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Do nothing."""

    def sum_gradients(self, parameters: Sequence[nn.Parameter], metrics: torch.Tensor) -> None:
        """Do nothing."""


class ProcessGroup:
    """Several learners, connected by gloo."""

    def __init__(self, store: Store, meeting: Rendezvous, *, host: str, rank: int, size: int, timeout_s: float):
        """Join the process group; blocks until all learners have joined.

        Args:
            store: The rendezvous store.
            meeting: Its address and secret.
            host: Address of this learner, at which the others connect to it.
            rank: Rank of this learner, from 0.
            size: Number of learners.
            timeout_s: Timeout for joining and for every all-reduce.
        """
        self.rows = slice(rank, None, size)
        self.is_waiting = False
        # Not torch.distributed.init_process_group: it lets gloo listen wherever the host name leads.
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [ProcessGroupGloo.create_device(hostname=host)]
        options._timeout = timedelta(seconds=timeout_s)
        self._group = ProcessGroupGloo(PrefixStore(meeting.secret, store), rank, size, options)

    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sum all tensors over all learners in one float32 all-reduce, in place."""
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        self.is_waiting = True
        try:
            self._group.allreduce([flat]).wait()  # type: ignore[attr-defined]
        except RuntimeError as error:
            raise PeerError(f"another learner is lost: {error}") from error
        self.is_waiting = False
        start = 0
        for tensor in tensors:
            end = start + tensor.numel()
            tensor.copy_(flat[start:end].view_as(tensor))
            start = end

    def sum_gradients(self, parameters: Sequence[nn.Parameter], metrics: torch.Tensor) -> None:
        """Sum gradients and metrics in one all-reduce; see `GradientSync.sum_gradients`."""
        has_gradient = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        self.all_reduce([metrics, has_gradient, *gradients])
        for parameter, gradient, num_learners in zip(parameters, gradients, has_gradient.tolist(), strict=True):
            parameter.grad = gradient if num_learners else None
