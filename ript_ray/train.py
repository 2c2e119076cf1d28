"""Algorithm 1 of RIPT-VLA, on any runtime: the whole of post-training on one screen."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

from ript_ray.admission import Admission
from ript_ray.config import Sampling
from ript_ray.contexts import ContextStream
from ript_ray.errors import DivergenceError, SearchExhaustedError
from ript_ray.filters import Verdict
from ript_ray.learner import UpdateReport
from ript_ray.ledger import Ledger, go_on, settle
from ript_ray.runtime.contract import Runtime
from ript_ray.seeding import Purpose, seed_of
from ript_ray.types import Arrays, GroupSummary, Progress, RolloutRequest, Weights

MAX_SKIPPED_UPDATES = 3
"""Updates in a row that may be skipped because something was not finite."""


@dataclass
class Collection:
    """Running figures of the rollouts of one update.

    Attributes:
        update: Number of the update, from 1.
        num_wanted: Mixed groups that the batch needs.
        verdicts: Groups by verdict so far.
        num_rollouts: Rollouts finished so far.
        num_solved: Successful ones.
        env_steps: Environment steps.
        record_bytes: Bytes of the accepted groups' records.
        started: When collection began, by `time.perf_counter`.
        rollout_s: Seconds it took, once the batch is full; at a lag above 0 from one batch to the next.
    """

    update: int
    num_wanted: int
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    num_rollouts: int = 0
    num_solved: int = 0
    env_steps: int = 0
    record_bytes: int = 0
    started: float = field(default_factory=time.perf_counter)
    rollout_s: float = 0.0

    def count(self, summary: GroupSummary, verdict: Verdict) -> None:
        """Add one finished group."""
        self.verdicts[verdict] += 1
        self.num_rollouts += len(summary.successes)
        self.num_solved += sum(success == 1.0 for success in summary.successes)
        self.env_steps += sum(summary.num_steps)
        self.record_bytes += summary.num_bytes if verdict is Verdict.ACCEPTED else 0

    def close(self) -> Self:
        """Stop the clock."""
        self.rollout_s = time.perf_counter() - self.started
        return self

    @property
    def success_rate(self) -> float:
        """Share of rollouts solved, over all groups, rejected ones included; 0 before the first."""
        return self.num_solved / max(1, self.num_rollouts)


@dataclass(frozen=True)
class UpdateRecord:
    """All that happened in one update.

    Attributes:
        collection: The rollouts.
        report: The learning.
        weights: The newest; what idle actors hold, and the others take before their next group.
        progress: Where training stands now.
        ledger: Where every group that was dispatched so far has gone.
        num_replaced: Rollout actors replaced so far.
        learner_state: Fetches the learner's state, which the next update changes.
        broadcast_s: Seconds spent sending weights.
    """

    collection: Collection
    report: UpdateReport
    weights: Weights
    progress: Progress
    ledger: Ledger
    num_replaced: int
    learner_state: Callable[[], Arrays]
    broadcast_s: float


class Observer(Protocol):
    """Who watches: called on the loop's own thread."""

    def on_group(self, collection: Collection, summary: GroupSummary, verdict: Verdict) -> None:
        """A group has finished, and is counted in the rollouts of the update under way."""
        ...

    def on_update(self, record: UpdateRecord) -> None:
        """An update has ended, and its weights are on their way to the actors."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How training ended.

    Attributes:
        ledger: Where every group that was dispatched has gone.
        exhausted: Why the search for mixed groups ended early, or none after all updates.
        last: Rollouts of the update that was under way when the search ended, or none.
    """

    ledger: Ledger = Ledger()  # noqa: RUF009 (frozen)
    exhausted: SearchExhaustedError | None = None
    last: Collection | None = None


def train(
    runtime: Runtime,
    stream: ContextStream,
    *,
    sampling: Sampling,
    num_updates: int,
    seed: int,
    observers: Sequence[Observer] = (),
    start: Progress | None = None,
) -> Outcome:
    """Update the policy until there have been `num_updates`, or until no mixed group is found within the limit.

    From `start`, with the learner's state of that moment, it goes on as if it had never stopped (at lag 0 to
    the bit).

    Raises:
        DivergenceError: Updates in a row were skipped because something was not finite.
    """
    progress = start or Progress()
    _refuse_divergence(progress, "before this run was resumed")
    admission = Admission(
        groups_per_update=sampling.groups_per_update,
        max_uniform_groups=sampling.max_uniform_groups,
        max_policy_lag=sampling.max_policy_lag,
        num_updates=num_updates,
        start=progress,
    )
    at_start = runtime.dispatches
    runtime.broadcast()
    collecting = learning = Collection(progress.update + 1, sampling.groups_per_update)
    while admission.update < num_updates:
        while admission.num_wanted > 0:
            runtime.launch(group_request(stream, admission.launch(), group_size=sampling.group_size, seed=seed))
        if admission.ready:
            runtime.start_update(admission.take_batch())
            learning, collecting = collecting.close(), Collection(collecting.update + 1, sampling.groups_per_update)
        if admission.at_end:
            ledger = go_on(settle(runtime.dispatches, at_start, admission), Ledger())
            return Outcome(ledger, admission.explain_exhaustion(), collecting)
        event = runtime.next_event()
        if isinstance(event, GroupSummary):
            verdict = _admit(event, runtime, admission, collecting)
            for observer in observers:
                observer.on_group(collecting, event, verdict)
        else:
            progress = _after(event, admission, progress)
            record = _broadcast(runtime, event, learning, progress, settle(runtime.dispatches, at_start, admission))
            for observer in observers:
                observer.on_update(record)
            _refuse_divergence(progress, event.problem)
            if sampling.max_policy_lag == 0:
                collecting.started = time.perf_counter()  # nothing was under way while the learner learned
    return Outcome(settle(runtime.dispatches, at_start, admission))


def group_request(stream: ContextStream, index: int, *, group_size: int, seed: int) -> RolloutRequest:
    """The rollouts of one group: the same context for all, a seed of its own for each."""
    members = range(group_size)
    seeds = tuple(seed_of(seed, Purpose.TRAINING_ROLLOUTS, index, member) for member in members)
    return RolloutRequest(index, (stream.at(index),) * group_size, seeds)


def _admit(summary: GroupSummary, runtime: Runtime, admission: Admission, collection: Collection) -> Verdict:
    """Dynamic sampling: send a group that teaches something to the learner, drop any other."""
    verdict = admission.offer(summary)
    if verdict is Verdict.ACCEPTED:
        runtime.keep(summary.index)
    else:
        runtime.drop(summary.index)
    collection.count(summary, verdict)
    return verdict


def _after(report: UpdateReport, admission: Admission, before: Progress) -> Progress:
    """Where training stands once the update that `report` tells of is booked."""
    next_index = admission.finish_update()
    return Progress(admission.update, next_index, before.skipped_streak + 1 if report.problem else 0)


def _broadcast(
    runtime: Runtime, report: UpdateReport, collection: Collection, progress: Progress, ledger: Ledger
) -> UpdateRecord:
    """Send the new weights out (Algorithm 1, line 19), and say all that happened."""
    started = time.perf_counter()
    weights = runtime.broadcast()
    assert weights.version == progress.update
    return UpdateRecord(
        collection=collection,
        report=report,
        weights=weights,
        progress=progress,
        ledger=ledger,
        num_replaced=runtime.dispatches.num_replaced,
        learner_state=runtime.learner_state,
        broadcast_s=time.perf_counter() - started,
    )


def _refuse_divergence(progress: Progress, problem: str | None) -> None:
    if progress.skipped_streak >= MAX_SKIPPED_UPDATES:
        raise DivergenceError(
            f"{progress.skipped_streak} updates in a row were skipped: {problem}; lower ppo.learning-rate"
        )
