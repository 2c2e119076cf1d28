"""Assemble groups into one batch of tensors and split it into minibatches of rollouts."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from ript_ray.rl.advantages import leave_one_out
from ript_ray.types import Batch, Group


def assemble(groups: Sequence[Group]) -> Batch:
    """Concatenate the decisions of all groups, rollout by rollout, without padding."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    advantages = np.concatenate(
        [leave_one_out([float(rollout.success) for rollout in group.rollouts]) for group in groups]
    )
    rollout_N = np.repeat(np.arange(len(rollouts)), [len(rollout.log_probs_TU) for rollout in rollouts])
    record = {
        name: torch.from_numpy(np.concatenate([rollout.record[name] for rollout in rollouts]))
        for name in rollouts[0].record
    }
    return Batch(
        record=record,
        old_log_probs_NU=torch.from_numpy(np.concatenate([rollout.log_probs_TU for rollout in rollouts])),
        valid_NU=torch.from_numpy(np.concatenate([rollout.valid_TU for rollout in rollouts])),
        advantages_N=torch.from_numpy(advantages[rollout_N]),
        rollout_N=torch.from_numpy(rollout_N),
        decision_N=torch.arange(len(rollout_N)),
        num_rollouts=len(rollouts),
    )


def minibatches(batch: Batch, size: int, generator: np.random.Generator) -> Iterator[Batch]:
    """Split a batch into ceil(num_rollouts / size) minibatches of whole rollouts, in random order.

    Their sizes differ by at most one rollout. Dynamic sampling, unless disabled, has removed groups without a
    gradient, so their effective sizes are equal too.

    Args:
        batch: The batch to split.
        size: Maximum rollouts per minibatch.
        generator: Draws the order.
    """
    order = generator.permutation(batch.num_rollouts)
    for chosen in np.array_split(order, -(-batch.num_rollouts // size)):
        rows = torch.isin(batch.rollout_N, torch.from_numpy(chosen)).nonzero().squeeze(-1)
        yield replace(select_rows(batch, rows), num_rollouts=len(chosen))


def weigh_rollouts_equally(minibatch: Batch) -> Batch:
    """Scale the advantages so that the loss, a mean over units, is the mean over rollouts of the means of their units.

    Source: authors' code for OpenVLA-OFT.
    """
    units_N = minibatch.valid_NU.sum(-1)
    rollout_N = minibatch.rollout_N.unique(return_inverse=True)[1]
    units_of_rollout = torch.zeros(minibatch.num_rollouts, dtype=units_N.dtype).index_add_(0, rollout_N, units_N)
    weight_N = units_N.sum() / (minibatch.num_rollouts * units_of_rollout.clamp(min=1)[rollout_N])
    return replace(minibatch, advantages_N=minibatch.advantages_N * weight_N)


def parts_of(batch: Batch, max_decisions: int | None, *, num_parts: int = 0) -> Iterator[Batch]:
    """Split a batch into consecutive parts of at most `max_decisions`; an empty one has none, and none is no limit.

    Parts without a unit that counts are added until there are `num_parts`.
    """
    num_decisions = len(batch.rollout_N)
    step = max_decisions or max(1, num_decisions)
    starts = range(0, num_decisions, step)
    for start in starts:
        yield select_rows(batch, slice(start, start + step))
    for _ in range(num_parts - len(starts)):
        yield without_units(select_rows(batch, slice(1)))


def equal_parts(batch: Batch, number: int) -> list[Batch]:
    """Split a batch into `number` consecutive parts, which differ by at most a decision; none of them is empty."""
    num_decisions = len(batch.rollout_N)
    bounds = [num_decisions * part // number for part in range(number + 1)]
    return [select_rows(batch, slice(start, stop)) for start, stop in itertools.pairwise(bounds) if start < stop]


def without_units(batch: Batch) -> Batch:
    """Return a batch of which no unit counts: it adds zeros to sums and gradients."""
    return replace(batch, valid_NU=torch.zeros_like(batch.valid_NU))


def move_batch(batch: Batch, device: str) -> Batch:
    """Move a batch; one that is there already is not copied."""
    return replace(
        batch,
        record={name: tensor.to(device) for name, tensor in batch.record.items()},
        old_log_probs_NU=batch.old_log_probs_NU.to(device),
        valid_NU=batch.valid_NU.to(device),
        advantages_N=batch.advantages_N.to(device),
        rollout_N=batch.rollout_N.to(device),
    )


def select_rows(batch: Batch, rows: torch.Tensor | slice) -> Batch:
    """Select decisions by index, or by slice without a copy; `num_rollouts` stays that of the whole batch."""
    return Batch(
        record={name: tensor[rows] for name, tensor in batch.record.items()},
        old_log_probs_NU=batch.old_log_probs_NU[rows],
        valid_NU=batch.valid_NU[rows],
        advantages_N=batch.advantages_N[rows],
        rollout_N=batch.rollout_N[rows],
        decision_N=batch.decision_N[rows],
        num_rollouts=batch.num_rollouts,
    )
