"""Where every copy of a group that was handed to an actor has gone: nothing is lost silently, nothing trained twice.

Two rooms keep the books: the runtime counts what it dispatched, lost and has running, admission what it accepted,
rejected and trained. `reconcile` brings them together, and they must agree.
"""

from dataclasses import dataclass, fields, replace

from ript_ray.rl.dynamic_sampling import UNIFORM, Verdict
from ript_ray.rl.group_buffer import GroupBuffer
from ript_ray.rl.protocols import DispatchCounts


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

    dispatched: int = 0
    trained: int = 0
    uniform: int = 0
    stale: int = 0
    invalid: int = 0
    lost: int = 0
    in_flight: int = 0

    @property
    def balance(self) -> int:
        """Copies that nobody can account for; 0 in a ledger that is right."""
        known = self.trained + self.uniform + self.stale + self.invalid + self.lost + self.in_flight
        return self.dispatched - known


def carry_over(earlier: Ledger, since: Ledger) -> Ledger:
    """The ledger of a run that stood at `earlier` when it was interrupted, and has done `since` after it.

    What was in flight at the interruption, or when the search ended, is lost.
    """
    fresh = replace(earlier, lost=earlier.lost + earlier.in_flight, in_flight=0)
    return Ledger(**{field.name: getattr(fresh, field.name) + getattr(since, field.name) for field in fields(Ledger)})


def reconcile(now: DispatchCounts, at_start: DispatchCounts, buffer: GroupBuffer) -> Ledger:
    """The ledger of a training run whose runtime had done `at_start` before it; asserts that the books agree."""
    rejected = buffer.num_rejected
    ledger = Ledger(
        dispatched=now.num_dispatched - at_start.num_dispatched,
        trained=buffer.num_trained,
        uniform=sum(rejected[verdict] for verdict in UNIFORM),
        stale=rejected[Verdict.STALE],
        invalid=rejected[Verdict.INVALID],
        lost=now.num_lost - at_start.num_lost,
        in_flight=now.num_running + buffer.num_waiting,
    )
    assert ledger.balance == 0, f"the books of runtime and admission differ: {ledger}"
    return ledger
