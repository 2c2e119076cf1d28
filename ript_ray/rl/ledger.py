"""Outcome counts of all dispatched groups: no group is lost silently or trained twice.

The runtime counts dispatched, lost and running copies; the group buffer counts accepted, rejected and trained
groups. `reconcile` combines both and checks that they match.
"""

from dataclasses import dataclass, field, fields, replace

from ript_ray.rl.dynamic_sampling import UNIFORM, Verdict
from ript_ray.rl.group_buffer import GroupBuffer
from ript_ray.rl.protocols import DispatchCounts


@dataclass(frozen=True)
class Ledger:
    """Invariant: dispatched = trained + uniform + stale + invalid + lost + duplicated + speculated + in_flight.

    Counts copies of requests: a retried or speculatively duplicated one has several, and a group that is split into
    parts has one for each.

    Attributes:
        dispatched: Sent to an actor.
        trained: Trained, each group once.
        uniform: Rejected because all rollouts failed or all succeeded; without dynamic sampling they are trained.
        stale: Rejected because the sampling policy was too old.
        invalid: Rejected because they are malformed.
        lost: Lost with an actor or its environment.
        duplicated: Cancelled because another copy of the same group was faster.
        speculated: Run ahead of need by idle actors, and not needed.
        in_flight: Running, or accepted and not trained yet.
    """

    dispatched: int = 0
    trained: int = 0
    uniform: int = 0
    stale: int = 0
    invalid: int = 0
    lost: int = 0
    in_flight: int = 0
    duplicated: int = field(default=0, metadata={"before": 0})
    speculated: int = field(default=0, metadata={"before": 0})

    @property
    def balance(self) -> int:
        """Copies not accounted for; 0 in a consistent ledger."""
        known = sum(getattr(self, field.name) for field in fields(self) if field.name != "dispatched")
        return self.dispatched - known


def carry_over(earlier: Ledger, since: Ledger) -> Ledger:
    """Add the ledger of a resumed run to the ledger at the interruption.

    Groups in flight at the interruption, or at the end of the search, count as lost.
    """
    fresh = replace(earlier, lost=earlier.lost + earlier.in_flight, in_flight=0)
    return Ledger(**{field.name: getattr(fresh, field.name) + getattr(since, field.name) for field in fields(Ledger)})


def reconcile(
    now: DispatchCounts, at_start: DispatchCounts, buffer: GroupBuffer, requests_per_group: int = 1
) -> Ledger:
    """Return the ledger of a run, excluding what the runtime had done `at_start`; asserts that the counts match."""
    rejected = {verdict: count * requests_per_group for verdict, count in buffer.num_rejected.items()}
    ledger = Ledger(
        dispatched=now.num_dispatched - at_start.num_dispatched,
        trained=buffer.num_trained * requests_per_group,
        uniform=sum(rejected.get(verdict, 0) for verdict in UNIFORM),
        stale=rejected.get(Verdict.STALE, 0),
        invalid=rejected.get(Verdict.INVALID, 0),
        lost=now.num_lost - at_start.num_lost,
        duplicated=now.num_duplicated - at_start.num_duplicated,
        speculated=now.num_speculated - at_start.num_speculated,
        in_flight=now.num_running + buffer.num_waiting * requests_per_group,
    )
    assert ledger.balance == 0, f"the counts of the runtime and the group buffer do not match: {ledger}"
    return ledger
