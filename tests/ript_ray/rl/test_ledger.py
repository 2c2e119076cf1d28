import pytest

from ript_ray.rl.ledger import Ledger, carry_over, reconcile
from ript_ray.rl.protocols import DispatchCounts
from tests.ript_ray.rl.test_group_buffer import FAILED, MIXED, buffer_of, summary


def test_matching_counts_give_a_ledger_and_mismatched_counts_are_refused() -> None:
    buffer = buffer_of(groups_per_update=1, max_uniform_groups=9, num_updates=9, max_policy_lag=2)
    for outcome in (MIXED, FAILED, MIXED):
        buffer.offer(summary(buffer.launch(), outcome))
    buffer.take_batch()
    buffer.finish_update()
    buffer.launch()
    at_start, now = (
        DispatchCounts(num_dispatched=5, num_lost=1),
        DispatchCounts(num_dispatched=10, num_lost=2, num_running=1),
    )
    assert reconcile(now, at_start, buffer) == Ledger(dispatched=5, trained=1, uniform=1, lost=1, in_flight=2)
    with pytest.raises(AssertionError, match=r"runtime and the group buffer do not match: .*dispatched=6"):
        reconcile(DispatchCounts(num_dispatched=11, num_lost=2, num_running=1), at_start, buffer)


def test_groups_in_flight_at_an_interruption_count_as_lost() -> None:
    earlier = Ledger(dispatched=10, trained=4, uniform=3, in_flight=3)
    whole = carry_over(earlier, Ledger(dispatched=5, trained=4, uniform=1))
    assert whole == Ledger(dispatched=15, trained=8, uniform=4, lost=3)
    assert whole.balance == 0


def test_without_dynamic_sampling_trained_uniform_groups_count_as_trained() -> None:
    buffer = buffer_of(groups_per_update=2, max_uniform_groups=9, num_updates=2, dynamic=False)
    for outcome in (MIXED, FAILED):
        buffer.offer(summary(buffer.launch(), outcome))
    buffer.take_batch()
    waiting = reconcile(DispatchCounts(num_dispatched=2), DispatchCounts(), buffer)
    assert waiting == Ledger(dispatched=2, in_flight=2)
    buffer.finish_update()
    assert reconcile(DispatchCounts(num_dispatched=2), DispatchCounts(), buffer) == Ledger(dispatched=2, trained=2)
