"""Where every copy of a group that was handed to an actor has gone: nothing is lost silently, nothing trained twice.

Two rooms keep the books: the runtime counts what it dispatched, lost and has running, admission what it accepted,
rejected and trained. `settle` brings them together, and they must agree.
"""

from dataclasses import dataclass

from ript_ray.admission import Admission
from ript_ray.filters import UNIFORM, Verdict
from ript_ray.types import Dispatches


@dataclass(frozen=True)
class Ledger:
    """dispatched = trained + uniform + stale + invalid + lost + in_flight, in copies of groups.

    Attributes:
        dispatched: Handed to an actor.
        trained: Learned from, each once.
        uniform: Rejected because all rollouts failed or all succeeded.
        stale: Rejected because the policy that acted is too old.
        invalid: Rejected because they are malformed.
        lost: Died with an actor or its environment, or were overtaken by another copy of the same group.
        in_flight: Running, or accepted and waiting to be trained.
    """

    dispatched: int
    trained: int
    uniform: int
    stale: int
    invalid: int
    lost: int
    in_flight: int


def settle(now: Dispatches, at_start: Dispatches, admission: Admission) -> Ledger:
    """The ledger of a training run whose runtime had done `at_start` before it; asserts that the books agree."""
    rejected = admission.num_rejected
    ledger = Ledger(
        dispatched=now.num_dispatched - at_start.num_dispatched,
        trained=admission.num_trained,
        uniform=sum(rejected[verdict] for verdict in UNIFORM),
        stale=rejected[Verdict.STALE],
        invalid=rejected[Verdict.INVALID],
        lost=now.num_lost - at_start.num_lost,
        in_flight=now.num_running + admission.num_waiting,
    )
    accounted = ledger.trained + ledger.uniform + ledger.stale + ledger.invalid + ledger.lost + ledger.in_flight
    assert ledger.dispatched == accounted, f"the books of runtime and admission differ: {ledger}"
    return ledger
