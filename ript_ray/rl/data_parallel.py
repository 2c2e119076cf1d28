"""Data-parallel learners: each takes a shard of every minibatch, and all apply the same optimizer step.

Gradients are packed into flat buckets, so the cost does not grow with the number of parameters, and summed while the
backward pass goes on. The last bucket, which is the only one of a small policy, takes a few metrics along. Rows of a
minibatch go from the learner that has them to the one that trains them just before.
"""

import contextlib
import functools
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import nn
from torch.distributed import PrefixStore, ProcessGroupGloo, Store, TCPStore  # type: ignore[attr-defined]

from ript_ray.errors import PeerError
from ript_ray.policies.base import ShardablePolicy
from ript_ray.rl.batch import select_rows, without_units
from ript_ray.rl.gradient_buckets import GradientBuckets, Wait
from ript_ray.rl.row_exchange import RowExchange
from ript_ray.types import Batch

ROW = "row"
"""In place of a record that is spread over learners: the place of each decision in the batch."""


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
        rank: Rank of this learner, from 0.
        is_waiting: Whether the learner exchanges something, so that others may keep it waiting.
    """

    rank: int
    is_waiting: bool

    @property
    def rows(self) -> slice:
        """Rows of a minibatch that this learner processes."""
        ...

    def spread(self, batch: Batch, home_N: torch.Tensor) -> Batch:
        """Begin an update on a batch, of whose record each learner has the rows that are at home there.

        Args:
            batch: The batch, with those rows of the record.
            home_N: Rank of the learner that has each row.

        Returns:
            The batch to take minibatches from.
        """
        ...

    def own(self, minibatch: Batch) -> Batch:
        """Return this learner's rows of a minibatch, record included.

        Raises:
            PeerError: Another learner died, or did not answer in time.
        """
        ...

    def num_parts(self, minibatch: Batch, max_decisions: int | None) -> int:
        """Return how many parts every learner must make of its rows, or 0 if that does not matter."""
        ...

    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sum each tensor over all learners, in place.

        Raises:
            PeerError: Another learner died, or did not answer in time.
        """
        ...

    def begin_last_pass(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum gradients from here on as soon as they are complete: the next backward pass is the last of the step."""
        ...

    def sum_gradients(self, parameters: Sequence[nn.Parameter], metrics: torch.Tensor) -> None:
        """Sum the gradients of the parameters, and `metrics`, over all learners, in place.

        A parameter without a gradient in some learners counts as zero there; without one in all, it keeps none.
        """
        ...


class NoSync:
    """Single learner: nothing to synchronize."""

    rank = 0
    rows = slice(None)
    is_waiting = False

    def spread(self, batch: Batch, home_N: torch.Tensor) -> Batch:
        """Return the batch as it is."""
        return batch

    def own(self, minibatch: Batch) -> Batch:
        """Return all rows."""
        return minibatch

    def num_parts(self, minibatch: Batch, max_decisions: int | None) -> int:
        """Return 0: any number will do."""
        return 0

    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Do nothing."""

    def begin_last_pass(self, parameters: Sequence[nn.Parameter]) -> None:
        """Do nothing."""

    def sum_gradients(self, parameters: Sequence[nn.Parameter], metrics: torch.Tensor) -> None:
        """Do nothing."""


class ProcessGroup:
    """Several learners, connected by gloo on the CPU and by NCCL on GPUs."""

    def __init__(
        self,
        store: Store,
        meeting: Rendezvous,
        *,
        host: str,
        rank: int,
        size: int,
        timeout_s: float,
        device: str = "cpu",
    ):
        """Join the process group; blocks until all learners have joined.

        Args:
            store: The rendezvous store.
            meeting: Its address and secret.
            host: Address of this learner, at which the others connect to it; NCCL finds its own.
            rank: Rank of this learner, from 0.
            size: Number of learners.
            timeout_s: Timeout for joining and for every all-reduce.
            device: Where the learners compute.
        """
        self.rank = rank
        self.rows = slice(rank, None, size)
        self.is_waiting = False
        self._size = size
        self._device = device
        self._buckets: GradientBuckets | None = None
        self._records: RowExchange
        self._is_sharded = False
        self._open_gloo = functools.partial(_open_gloo, host)
        self._store, self._timeout = PrefixStore(meeting.secret, store), timedelta(seconds=timeout_s)
        # Records are in main memory.
        self._group = self._host_group = self._open_gloo(self._store, rank, size, self._timeout)
        if device == "cuda":
            self._group = _open_nccl(PrefixStore("nccl", self._store), rank, size, self._timeout)

    def shard(self, policy: ShardablePolicy) -> None:
        """Share the frozen weights of a policy from here on; see `sharded_base`."""
        from ript_ray.rl.sharded_base import open_mesh, shard_base  # FSDP: 50 MB and a second that few runs need

        # A group of its own: gradients are summed while weights are fetched, in another order in each learner.
        mesh = open_mesh(
            self._store, self.rank, self._size, timeout=self._timeout, device=self._device, open_gloo=self._open_gloo
        )
        shard_base(policy, mesh, self._waiting)
        self._is_sharded = True

    def spread(self, batch: Batch, home_N: torch.Tensor) -> Batch:
        """See `GradientSync.spread`."""
        self._records = RowExchange(batch.record, home_N, rank=self.rank, size=self._size)
        return replace(batch, record={ROW: torch.arange(len(home_N))})

    def own(self, minibatch: Batch) -> Batch:
        """See `GradientSync.own`."""
        rows = minibatch.record[ROW]
        wanted = [rows[rank :: self._size] for rank in range(self._size)]
        own = select_rows(minibatch, self.rows)
        if self._is_sharded:  # nobody can run the policy alone
            wanted = [some if len(some) else rows[:1] for some in wanted]
            own = own if len(own.rollout_N) else without_units(select_rows(minibatch, slice(1)))
        return replace(own, record=self._records.fetch(wanted, self._swap))

    def num_parts(self, minibatch: Batch, max_decisions: int | None) -> int:
        """See `GradientSync.num_parts`."""
        most_rows = -(-len(minibatch.rollout_N) // self._size)
        return -(-most_rows // (max_decisions or max(1, most_rows))) if self._is_sharded else 0

    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sum all tensors over all learners in one float32 all-reduce, in place."""
        self._begin_sum(tensors)()

    def begin_last_pass(self, parameters: Sequence[nn.Parameter]) -> None:
        """See `GradientSync.begin_last_pass`."""
        self._buckets = GradientBuckets(parameters, self._begin_sum)

    def sum_gradients(self, parameters: Sequence[nn.Parameter], metrics: torch.Tensor) -> None:
        """See `GradientSync.sum_gradients`; a learner without rows has had no pass."""
        buckets = self._buckets or GradientBuckets(parameters, self._begin_sum)
        self._buckets = None
        buckets.finish(metrics)

    def _begin_sum(self, tensors: Sequence[torch.Tensor]) -> Wait:
        flat = torch.cat([tensor.to(self._device, torch.float32).reshape(-1) for tensor in tensors])
        with _naming_lost_peers():
            work = self._group.allreduce([flat])

        def wait() -> None:
            with self._waiting():
                work.wait()
            for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

        return wait

    def _swap(self, outgoing: torch.Tensor, sent: Sequence[int], received: Sequence[int]) -> torch.Tensor:
        """See `row_exchange.Swap`."""
        incoming = outgoing.new_empty(sum(received), outgoing.shape[1])
        with self._waiting():
            self._host_group.alltoall_base(incoming, outgoing, received, sent).wait()
        return incoming

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        self.is_waiting = True
        with _naming_lost_peers():
            yield
        self.is_waiting = False


@contextlib.contextmanager
def _naming_lost_peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerError(f"another learner is lost: {error}") from error


def _open_gloo(host: str, store: Store, rank: int, size: int, timeout: timedelta) -> Any:
    # Not torch.distributed.init_process_group: it lets gloo listen wherever the host name leads.
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = timeout
    return ProcessGroupGloo(store, rank, size, options)


def _open_nccl(store: Store, rank: int, size: int, timeout: timedelta) -> Any:
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # the death of another learner is an error, not our end
    from torch.distributed import ProcessGroupNCCL  # only in a torch with CUDA

    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
    return ProcessGroupNCCL(store, rank, size, options)
