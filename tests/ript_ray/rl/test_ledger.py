import pytest

from ript_ray.rl.group_buffer import GroupBuffer
from ript_ray.rl.ledger import Ledger, carry_over, reconcile
from ript_ray.rl.protocols import DispatchCounts
from tests.ript_ray.rl.test_group_buffer import FAILED, MIXED, summary


def test_books_that_agree_give_a_ledger_and_books_that_differ_are_refused() -> None:
    buffer = GroupBuffer(groups_per_update=1, max_uniform_groups=9, num_updates=9, max_policy_lag=2)
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
    with pytest.raises(AssertionError, match="the books of runtime and admission differ"):
        reconcile(DispatchCounts(num_dispatched=11, num_lost=2, num_running=1), at_start, buffer)


def test_what_was_in_flight_when_a_run_was_interrupted_is_lost() -> None:
    earlier = Ledger(dispatched=10, trained=4, uniform=3, in_flight=3)
    whole = carry_over(earlier, Ledger(dispatched=5, trained=4, uniform=1))
    assert whole == Ledger(dispatched=15, trained=8, uniform=4, lost=3)
    assert whole.balance == 0
