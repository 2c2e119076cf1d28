"""Which failures of actors count as faults, and how long a request may take."""

from ript_ray.errors import WorkerError
from ript_ray.runtime.actor_faults import ROOM_RETRY_S, ActorFaults
from ript_ray.runtime.actor_slot import ActorSlot
from ript_ray.runtime.limits import NODE_VERDICT_S, Limits, RecentFaults


def test_faults_count_within_the_period_only() -> None:
    faults = RecentFaults(period_s=3600.0)
    for moment in (0.0, 1000.0, 2000.0):
        faults.add(moment, "a", is_certain=True)
    assert [faults.count(now, {"a"}) for now in (2000.0, 3601.0, 5601.0)] == [3, 2, 0]


def test_failures_that_may_be_their_nodes_count_once_the_node_has_outlived_them() -> None:
    faults = RecentFaults(period_s=3600.0)
    for _ in range(128):
        faults.add(0.0, "a", is_certain=False)
        faults.add(0.0, "b", is_certain=False)
    assert faults.count(1.0, {"a", "b"}) == 0
    assert faults.count(NODE_VERDICT_S + 1, {"b"}) == 128, "the node of the others has died"
    faults.add(1.0, None, is_certain=False)
    assert faults.count(NODE_VERDICT_S + 2, set()) == 1, "an unknown node explains nothing"


def test_the_timeout_of_a_request_grows_with_its_failures_and_with_what_others_took() -> None:
    limits = Limits(start_timeout_s=1.0, group_timeout_s=600.0, max_replacements=1)
    assert limits.request_timeout_s(num_failures=0, longest_s=100.0) == 600.0, "never below the setting"
    assert [limits.request_timeout_s(num_failures=n, longest_s=0.0) for n in range(1, 5)] == [1200, 2400, 4800, 9600]
    assert limits.request_timeout_s(num_failures=0, longest_s=500.0) == 1500.0


def test_a_node_that_leaves_or_that_others_use_is_no_fault_of_its_actors() -> None:
    faults = ActorFaults(Limits(start_timeout_s=1.0, group_timeout_s=1.0, max_replacements=0))
    leaving, extra = ActorSlot(0, 0, None, node="a", is_leaving=True), ActorSlot(1, 1, None)
    died, late = WorkerError("its process died"), TimeoutError("no answer within 1 s")
    for _ in range(100):
        assert faults.add(leaving, died, is_start=False, num_actors=2, is_extra=True) == (0.0, False)
        assert faults.add(extra, late, is_start=True, num_actors=2, is_extra=True) == (ROOM_RETRY_S, False)
