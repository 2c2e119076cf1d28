import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from ript_ray.errors import SearchExhaustedError
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.group_buffer import GroupBuffer
from ript_ray.types import GroupSummary, Version

MIXED, FAILED, SOLVED = (1.0, 0.0), (0.0, 0.0), (1.0, 1.0)


def summary(index: int, successes: tuple[float, ...], version: int = 0) -> GroupSummary:
    return GroupSummary(index, Version(version), successes, (1,) * len(successes), 0)


def collect(
    outcomes: Sequence[tuple[float, ...]], arrival: np.random.Generator, groups_per_update: int
) -> list[list[int]]:
    """Fill three batches from groups that arrive in random order; returns the batches."""
    buffer = GroupBuffer(groups_per_update=groups_per_update, max_uniform_groups=1000, num_updates=3)
    batches: list[list[int]] = []
    flying: list[int] = []
    while len(batches) < 3:
        while buffer.num_wanted > 0:
            flying.append(buffer.launch())
        index = flying.pop(arrival.integers(len(flying)))
        buffer.offer(summary(index, outcomes[index], buffer.update))
        if buffer.ready:
            assert not flying, "a launched group was neither rejected nor trained"
            batches.append(buffer.take_batch())
            assert buffer.finish_update() == batches[-1][-1] + 1
            assert not buffer._groups, "a finished group still takes memory"
    return batches


def test_a_batch_is_the_first_mixed_groups_by_index_for_any_order_of_arrival() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        outcomes = [(MIXED, FAILED, SOLVED)[choice] for choice in rng.integers(0, 3, 200)]
        mixed = [index for index, outcome in enumerate(outcomes) if outcome is MIXED]
        for arrival in range(5):
            batches = collect(outcomes, np.random.default_rng(arrival), groups_per_update=4)
            assert batches == [mixed[0:4], mixed[4:8], mixed[8:12]]


def exhaust(outcomes: Sequence[tuple[float, ...]]) -> SearchExhaustedError:
    buffer = GroupBuffer(groups_per_update=1, max_uniform_groups=len(outcomes), num_updates=1)
    for outcome in outcomes:
        assert buffer.num_wanted == 1
        buffer.offer(summary(buffer.launch(), outcome))
    assert buffer.exhausted
    assert buffer.num_wanted == 0
    return buffer.explain_exhaustion()


@pytest.mark.parametrize(
    ("outcomes", "message", "is_success"),
    [
        ([SOLVED] * 6, "every context drawn is solved (6 groups in a row taught nothing: 6 all solved, 0 all f", True),
        ([FAILED] * 6, "the policy never succeeds (6 groups in a row", False),
        ([FAILED, SOLVED, SOLVED], "either solved or out of reach (3 groups in a row taught nothing: 2 all s", False),
    ],
)
def test_an_exhausted_search_explains_why(
    outcomes: Sequence[tuple[float, ...]], message: str, is_success: bool
) -> None:
    error = exhaust(outcomes)
    assert message in str(error)
    assert error.is_success is is_success


def test_a_mixed_group_resets_the_streak() -> None:
    buffer = GroupBuffer(groups_per_update=2, max_uniform_groups=3, num_updates=1)
    for outcome in (FAILED, FAILED, MIXED, FAILED, FAILED):
        buffer.offer(summary(buffer.launch(), outcome))
    assert buffer.offer(summary(buffer.launch(), MIXED)) is Verdict.ACCEPTED
    assert not buffer.exhausted
    assert buffer.take_batch() == [2, 5]


def test_the_search_ends_at_the_same_group_for_any_order_of_arrival() -> None:
    outcomes = [MIXED, FAILED, FAILED, FAILED]
    for arrival in itertools.permutations(range(4)):
        buffer = GroupBuffer(groups_per_update=4, max_uniform_groups=3, num_updates=1)
        for _ in outcomes:
            buffer.launch()
        for index in arrival:
            assert not buffer.exhausted
            buffer.offer(summary(index, outcomes[index]))
        assert buffer.exhausted
        assert not buffer.ready
        assert buffer.at_end


def test_stale_and_malformed_groups_and_those_of_another_layout_are_rejected_and_counted() -> None:
    buffer = GroupBuffer(groups_per_update=1, max_uniform_groups=10, num_updates=9, max_policy_lag=0)
    sound = replace(summary(buffer.launch(), MIXED), layout=(("log_probs", (4,), "float32"),))
    assert buffer.offer(sound) is Verdict.ACCEPTED
    buffer.take_batch()
    buffer.finish_update()
    offered = [
        summary(1, MIXED),
        replace(summary(2, (math.nan, 0.0), 1), error="the environment returned success nan, not a bool"),
        replace(summary(3, MIXED, 1), layout=(("log_probs", (5,), "float32"),)),
    ]
    for each in offered:
        assert buffer.launch() == each.index
    assert [buffer.offer(each) for each in offered] == [Verdict.STALE, Verdict.INVALID, Verdict.INVALID]
    assert buffer.num_rejected == {Verdict.STALE: 1, Verdict.INVALID: 2}
    assert not buffer.ready


def test_no_group_is_launched_that_no_update_will_train() -> None:
    buffer = GroupBuffer(groups_per_update=4, max_uniform_groups=10, num_updates=2, max_policy_lag=5)
    assert buffer.num_wanted == 8


def test_without_dynamic_sampling_uniform_groups_fill_the_batch_in_index_order_and_end_no_search() -> None:
    outcomes = [FAILED, MIXED, SOLVED, FAILED]
    for arrival in itertools.permutations(range(4)):
        buffer = GroupBuffer(groups_per_update=4, max_uniform_groups=1, num_updates=1, dynamic=False)
        for _ in outcomes:
            buffer.launch()
        verdicts = {index: buffer.offer(summary(index, outcomes[index])) for index in arrival}
        assert [verdicts[index] for index in range(4)] == [
            Verdict.ALL_FAILED,
            Verdict.ACCEPTED,
            Verdict.ALL_SOLVED,
            Verdict.ALL_FAILED,
        ]
        assert not buffer.exhausted
        assert buffer.take_batch() == [0, 1, 2, 3]
        assert buffer.num_uniform_in_training == 3
        buffer.finish_update()
        assert (buffer.num_trained, buffer.num_rejected.total(), buffer.num_waiting) == (4, 0, 0)


def test_without_dynamic_sampling_malformed_groups_and_those_of_another_layout_are_still_rejected() -> None:
    buffer = GroupBuffer(groups_per_update=3, max_uniform_groups=2, num_updates=1, dynamic=False)
    layout = (("log_probs", (4,), "float32"),)
    offered = [
        replace(summary(0, FAILED), layout=layout),
        replace(summary(1, SOLVED), layout=()),
        replace(summary(2, (math.nan, 0.0)), error="the environment returned success nan, not a bool"),
    ]
    for each in offered:
        assert buffer.launch() == each.index
    assert [buffer.offer(each) for each in offered] == [Verdict.ALL_FAILED, Verdict.INVALID, Verdict.INVALID]
    assert buffer.exhausted
    assert "no usable groups (2 groups in a row" in str(buffer.explain_exhaustion())


def test_with_dynamic_sampling_no_uniform_group_is_in_training() -> None:
    buffer = GroupBuffer(groups_per_update=1, max_uniform_groups=9, num_updates=1)
    for outcome in (FAILED, MIXED):
        buffer.offer(summary(buffer.launch(), outcome))
    assert buffer.take_batch() == [1]
    assert buffer.num_uniform_in_training == 0
