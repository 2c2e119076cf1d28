"""Records that are spread over several learners, and the way of each row to the learner that trains it.

A record is most of a group: images. So each group is delivered to one learner, its home, and the others get its outline
alone. Which rows form a minibatch, and which learner trains which of them, does not depend on the homes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ript_ray.types import Group

Swap = Callable[[torch.Tensor, Sequence[int], Sequence[int]], torch.Tensor]
"""Sends rows (uint8, two axes) to the learners, so many to each in order; returns those received, so many from each."""


@dataclass(frozen=True)
class SharedGroup:
    """A group as one of several learners has it.

    Attributes:
        group: The group; in all learners but its home the arrays of its records have no rows.
        home: Rank of the learner that has its records.
    """

    group: Group
    home: int

    @property
    def outline(self) -> "SharedGroup":
        """The group as the other learners need it."""
        rollouts = tuple(
            replace(rollout, record={name: array[:0] for name, array in rollout.record.items()})
            for rollout in self.group.rollouts
        )
        return SharedGroup(replace(self.group, rollouts=rollouts), self.home)


def homes_of(groups: Sequence[SharedGroup]) -> torch.Tensor:
    """Return the home of each decision, int64 (N,)."""
    lengths = [sum(len(rollout.log_probs_TU) for rollout in each.group.rollouts) for each in groups]
    return torch.tensor([each.home for each in groups]).repeat_interleave(torch.tensor(lengths))


class RowExchange:
    """The records of a batch, each row at its home, and the exchange of those that are needed elsewhere."""

    def __init__(self, record: dict[str, torch.Tensor], home_N: torch.Tensor, *, rank: int, size: int):
        """Hold this learner's share.

        Args:
            record: The rows that are at home here, in the order of the batch.
            home_N: Home of each row of the batch; equal in all learners.
            rank: Rank of this learner.
            size: Number of learners.
        """
        self._layout = [(name, tensor.dtype, tensor.shape[1:]) for name, tensor in record.items()]
        self._here = torch.cat([_bytes_of(tensor) for tensor in record.values()], dim=1)
        self._home_N = home_N
        self._place_N = torch.empty_like(home_N)
        for home in range(size):
            at_home = home_N == home
            self._place_N[at_home] = torch.arange(int(at_home.sum()))
        self._rank = rank

    def fetch(self, wanted: Sequence[torch.Tensor], swap: Swap) -> dict[str, torch.Tensor]:
        """Return the rows that this learner wants, and send the others what they want.

        Args:
            wanted: Per learner, the rows of the batch that it wants; equal in all learners.
            swap: Connects the learners.
        """
        sent = [rows[self._home_N[rows] == self._rank] for rows in wanted]
        homes = self._home_N[wanted[self._rank]]
        outgoing = self._here[self._place_N[torch.cat(sent)]]
        received = swap(outgoing, [len(rows) for rows in sent], homes.bincount(minlength=len(wanted)).tolist())
        rows = torch.empty_like(received)
        rows[homes.argsort(stable=True)] = received  # they come learner by learner
        return self._unpack(rows)

    def _unpack(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        widths = [math.prod(shape) * dtype.itemsize for _, dtype, shape in self._layout]
        return {
            # A copy: in one row all parts are contiguous as they are, at places that no other type may begin at.
            name: part.clone(memory_format=torch.contiguous_format).view(-1).view(dtype).view(len(rows), *shape)
            for (name, dtype, shape), part in zip(self._layout, rows.split(widths, dim=1), strict=True)
        }


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the rows of a tensor as bytes, two axes."""
    width = math.prod(tensor.shape[1:]) * tensor.dtype.itemsize
    if not len(tensor):  # whose strides may be any, which no other type can be seen through
        return torch.empty(0, width, dtype=torch.uint8)
    return tensor.contiguous().view(-1).view(torch.uint8).view(len(tensor), width)
