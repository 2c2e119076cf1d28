import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ript_ray.config.rl import Sampling
from ript_ray.errors import ConfigError, SearchExhaustedError
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.group_buffer import GroupBuffer
from ript_ray.types import GroupSummary, Version

MIXED, FAILED, SOLVED = (1.0, 0.0), (0.0, 0.0), (1.0, 1.0)


def summary(index: int, successes: tuple[float, ...], version: int = 0) -> GroupSummary:
    return GroupSummary(index, Version(version), successes, (1,) * len(successes), 0)


def buffer_of(groups_per_update: int, *, num_updates: int, **sampling: Any) -> GroupBuffer:
    return GroupBuffer(Sampling(2, 2 * groups_per_update, **sampling), num_updates=num_updates)


def collect(
    buffer: GroupBuffer, outcomes: Sequence[tuple[float, ...]], arrival: np.random.Generator, num_batches: int
) -> list[tuple[list[int], int]]:
    """Fill batches from groups that arrive in random order; returns each, and the first index after it."""
    batches: list[tuple[list[int], int]] = []
    flying: list[int] = []
    while len(batches) < num_batches:
        while buffer.num_wanted > 0:
            flying.append(buffer.launch())
        index = flying.pop(arrival.integers(len(flying)))
        buffer.offer(summary(index, outcomes[index], buffer.update))
        if buffer.ready:
            assert not flying, "a launched group was neither rejected nor trained"
            batches.append((buffer.take_batch(), buffer.finish_update()))
            assert not buffer._groups, "a finished group still takes memory"
    return batches


def test_a_batch_is_the_first_mixed_groups_by_index_for_any_order_of_arrival() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        outcomes = [(MIXED, FAILED, SOLVED)[choice] for choice in rng.integers(0, 3, 200)]
        mixed = [index for index, outcome in enumerate(outcomes) if outcome is MIXED]
        for arrival in range(5):
            buffer = buffer_of(4, max_uniform_groups=1000, num_updates=3)
            batches = collect(buffer, outcomes, np.random.default_rng(arrival), 3)
            assert batches == [(mixed[first : first + 4], mixed[first + 3] + 1) for first in (0, 4, 8)]


def exhaust(outcomes: Sequence[tuple[float, ...]]) -> SearchExhaustedError:
    buffer = buffer_of(groups_per_update=1, max_uniform_groups=len(outcomes), num_updates=1)
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
    buffer = buffer_of(groups_per_update=2, max_uniform_groups=3, num_updates=1)
    for outcome in (FAILED, FAILED, MIXED, FAILED, FAILED):
        buffer.offer(summary(buffer.launch(), outcome))
    assert buffer.offer(summary(buffer.launch(), MIXED)) is Verdict.ACCEPTED
    assert not buffer.exhausted
    assert buffer.take_batch() == [2, 5]


def test_the_search_ends_at_the_same_group_for_any_order_of_arrival() -> None:
    outcomes = [MIXED, FAILED, FAILED, FAILED]
    for arrival in itertools.permutations(range(4)):
        buffer = buffer_of(groups_per_update=4, max_uniform_groups=3, num_updates=1)
        for _ in outcomes:
            buffer.launch()
        for index in arrival:
            assert not buffer.exhausted
            buffer.offer(summary(index, outcomes[index]))
        assert buffer.exhausted
        assert not buffer.ready
        assert buffer.at_end


def test_stale_and_malformed_groups_and_those_of_another_layout_are_rejected_and_counted() -> None:
    buffer = buffer_of(groups_per_update=1, max_uniform_groups=10, num_updates=9, max_policy_lag=0)
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
    buffer = buffer_of(groups_per_update=4, max_uniform_groups=10, num_updates=2, max_policy_lag=5)
    assert buffer.num_wanted == 8


def test_without_dynamic_sampling_uniform_groups_fill_the_batch_in_index_order_and_end_no_search() -> None:
    outcomes = [FAILED, MIXED, SOLVED, FAILED]
    for arrival in itertools.permutations(range(4)):
        buffer = buffer_of(groups_per_update=4, max_uniform_groups=1, num_updates=1, dynamic=False)
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
    buffer = buffer_of(groups_per_update=3, max_uniform_groups=2, num_updates=1, dynamic=False)
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
    buffer = buffer_of(groups_per_update=1, max_uniform_groups=9, num_updates=1)
    for outcome in (FAILED, MIXED):
        buffer.offer(summary(buffer.launch(), outcome))
    assert buffer.take_batch() == [1]
    assert buffer.num_uniform_in_training == 0


def test_an_update_whose_budget_is_used_trains_what_was_collected_in_any_order_of_arrival() -> None:
    outcomes = [MIXED, FAILED, FAILED, MIXED, SOLVED, MIXED, MIXED, MIXED, MIXED, MIXED]
    for arrival in range(20):
        buffer = buffer_of(4, num_updates=2, max_groups_per_update=5, min_batch_share=0.5)
        batches = collect(buffer, outcomes, np.random.default_rng(arrival), 2)
        assert batches == [([0, 3], 5), ([5, 6, 7, 8], 9)], "with the index where a resumed run goes on"


def test_a_search_whose_budget_gave_less_than_the_smallest_batch_ends_and_says_so() -> None:
    buffer = buffer_of(4, num_updates=2, max_groups_per_update=5, min_batch_share=0.75)
    while buffer.num_wanted > 0:
        index = buffer.launch()
        buffer.offer(summary(index, (MIXED, FAILED, FAILED, MIXED, SOLVED)[index]))
    assert buffer.at_end
    assert str(buffer.explain_exhaustion()) == (
        "2 of the 5 groups of an update were mixed (sampling.max-groups-per-update), and a batch needs at least 3 of 4 "
        "(sampling.min-batch-share)"
    )


def test_a_search_that_ends_after_uniform_groups_in_a_row_trains_what_was_collected_first() -> None:
    for arrival in itertools.permutations(range(4)):
        buffer = buffer_of(4, num_updates=2, max_uniform_groups=2, min_batch_share=0.5)
        for _ in range(4):
            buffer.launch()
        for index in arrival:
            buffer.offer(summary(index, (MIXED, MIXED, FAILED, FAILED)[index]))
        assert buffer.ready
        assert buffer.take_batch() == [0, 1]
        buffer.finish_update()
        assert buffer.at_end


def test_with_lag_every_batch_has_a_budget_of_its_own() -> None:
    buffer = buffer_of(2, num_updates=9, max_policy_lag=1, max_groups_per_update=3, min_batch_share=0.5)
    while buffer.num_wanted > 0:
        buffer.offer(summary(buffer.launch(), FAILED if buffer._next_index % 3 else MIXED))
    assert buffer.take_batch() == [2]
    assert buffer.num_wanted == 0, "two batches of three groups are launched"
    buffer.finish_update()
    assert buffer.take_batch() == [5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_groups_per_update": 3}, "sampling.max-groups-per-update must be at least 4, not 3"),
        ({"min_batch_share": 0.0}, "sampling.min-batch-share must be above 0 and at most 1, not 0.0"),
    ],
)
def test_a_budget_below_a_batch_and_an_empty_batch_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(2, 8, **settings)
