import numpy as np
import torch

from ript_ray.rl.advantages import leave_one_out
from ript_ray.rl.batch import assemble, equal_parts, minibatches
from ript_ray.types import Group, Rollout, Version


def group(index: int, lengths: list[int], successes: list[bool]) -> Group:
    rollouts = tuple(
        Rollout(
            success=success,
            num_steps=length,
            record={"row": np.full((length, 1), 100 * index + member)},
            log_probs_TU=np.full((length, 2), float(member), np.float32),
            valid_TU=np.ones((length, 2), np.bool_),
        )
        for member, (length, success) in enumerate(zip(lengths, successes, strict=True))
    )
    return Group(index, Version(0), rollouts)


GROUPS = [group(0, [3, 1, 2], [True, False, False]), group(4, [1, 5, 1], [False, True, True])]


def test_every_decision_appears_once_with_the_advantage_of_its_rollout() -> None:
    batch = assemble(GROUPS)
    assert batch.num_rollouts == 6
    assert batch.record["row"].squeeze(-1).tolist() == [0, 0, 0, 1, 2, 2, 400, 401, 401, 401, 401, 401, 402]
    expected = np.concatenate([leave_one_out([1, 0, 0]), leave_one_out([0, 1, 1])])
    np.testing.assert_array_equal(batch.advantages_N, expected[batch.rollout_N])


def test_minibatches_are_equal_parts_of_whole_rollouts_and_complete() -> None:
    batch = assemble(GROUPS)
    for size in range(1, 8):
        parts = list(minibatches(batch, size, np.random.default_rng(size)))
        counts = [part.num_rollouts for part in parts]
        assert len(parts) == -(-6 // size)
        assert max(counts) <= size
        assert max(counts) - min(counts) <= 1
        rows = torch.cat([part.record["row"] for part in parts]).squeeze(-1)
        assert sorted(rows.tolist()) == batch.record["row"].squeeze(-1).tolist()
        for part in parts:
            assert len(part.rollout_N.unique()) == part.num_rollouts


def test_the_order_of_minibatches_depends_on_the_seed_alone() -> None:
    batch = assemble(GROUPS)

    def order(seed: int) -> list[list[int]]:
        return [part.rollout_N.tolist() for part in minibatches(batch, 2, np.random.default_rng(seed))]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_equal_parts_differ_by_at_most_a_decision_and_none_is_empty() -> None:
    batch = assemble(GROUPS)
    num_decisions = len(batch.rollout_N)
    for number in range(1, num_decisions + 3):
        parts = equal_parts(batch, number)
        sizes = [len(part.rollout_N) for part in parts]
        assert len(parts) == min(number, num_decisions)
        assert max(sizes) - min(sizes) <= 1
        np.testing.assert_array_equal(np.concatenate([part.record["row"] for part in parts]), batch.record["row"])
