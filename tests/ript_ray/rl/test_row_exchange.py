"""A group's record is at one learner, and every learner can have any row of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ript_ray.rl.batch import assemble
from ript_ray.rl.row_exchange import RowExchange, SharedGroup, homes_of
from ript_ray.types import Arrays, Batch, Group, Rollout, Version

HOMES = (2, 0, 2)
SIZE = 3


def make_groups() -> list[SharedGroup]:
    random = np.random.default_rng(0)

    def rollout(length: int) -> Rollout:
        record: Arrays = {
            "image": random.integers(256, size=(length, 3, 3, 2), dtype=np.uint8),
            "state": random.normal(size=(length, 5)).astype(np.float32),
            "is_open": random.random(length) < 0.5,
            "token": random.integers(1 << 40, size=(length, 2)),
        }
        return Rollout(True, length, record, np.zeros((length, 1), np.float32), np.ones((length, 1), np.bool_))

    groups = [Group(index, Version(0), (rollout(2 + index), rollout(1))) for index in range(len(HOMES))]
    return [SharedGroup(group, home) for group, home in zip(groups, HOMES, strict=True)]


def batch_at(rank: int, groups: list[SharedGroup]) -> Batch:
    return assemble([(each if each.home == rank else each.outline).group for each in groups])


def test_a_learner_without_a_group_knows_all_of_it_but_its_record() -> None:
    groups = make_groups()
    whole, there = assemble([each.group for each in groups]), batch_at(1, groups)
    assert torch.equal(there.rollout_N, whole.rollout_N)
    assert torch.equal(there.old_log_probs_NU, whole.old_log_probs_NU)
    assert {name: (tensor.dtype, tensor.shape[1:]) for name, tensor in there.record.items()} == {
        name: (tensor.dtype, tensor.shape[1:]) for name, tensor in whole.record.items()
    }
    assert not any(len(tensor) for tensor in there.record.values())


def test_every_learner_gets_the_rows_that_it_wants_in_their_order() -> None:
    groups = make_groups()
    whole, home_N = assemble([each.group for each in groups]).record, homes_of(groups)
    exchanges = [RowExchange(batch_at(rank, groups).record, home_N, rank=rank, size=SIZE) for rank in range(SIZE)]
    for wanted in ([[7, 0, 3], [5, 11, 4, 1], []], [[], [0], []], [[2], [2], [2]]):
        rows = [torch.tensor(some, dtype=torch.int64) for some in wanted]
        sent: list[tuple[torch.Tensor, ...]] = []

        def collect(outgoing: torch.Tensor, sizes: Sequence[int], received: Sequence[int], sent: list = sent) -> Any:
            sent.append(outgoing.split(sizes))
            return outgoing.new_zeros(sum(received), outgoing.shape[1])

        for exchange in exchanges:
            exchange.fetch(rows, collect)
        for rank, exchange in enumerate(exchanges):
            got = exchange.fetch(rows, lambda *_, rank=rank, sent=sent: torch.cat([parts[rank] for parts in sent]))
            for name, tensor in whole.items():
                assert torch.equal(got[name], tensor[rows[rank]]), (name, wanted)
        assert sum(len(part) for parts in sent for part in parts) == sum(map(len, rows)), "no row is sent in vain"
