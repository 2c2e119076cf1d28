"""Algorithm 1 of RIPT-VLA, on any runtime: the whole of post-training on one screen."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ript_ray.admission import Admission
from ript_ray.config import Sampling
from ript_ray.contexts import ContextStream
from ript_ray.errors import SearchExhaustedError
from ript_ray.filters import Verdict
from ript_ray.learner import UpdateReport
from ript_ray.runtime.contract import Runtime
from ript_ray.seeding import Purpose, seed_of
from ript_ray.types import Arrays, Faults, GroupSummary, Progress, RolloutRequest, Version, Weights


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
    """

    update: int
    num_wanted: int
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    num_rollouts: int = 0
    num_solved: int = 0
    env_steps: int = 0
    record_bytes: int = 0
    started: float = field(default_factory=time.perf_counter)

    def count(self, summary: GroupSummary, verdict: Verdict) -> None:
        """Add one finished group."""
        self.verdicts[verdict] += 1
        self.num_rollouts += len(summary.successes)
        self.num_solved += int(sum(summary.successes))
        self.env_steps += sum(summary.num_steps)
        self.record_bytes += summary.num_bytes if verdict is Verdict.ACCEPTED else 0

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
        weights: What the actors hold now.
        progress: Where training stands now.
        faults: What has gone wrong and been mended so far.
        learner_state: Fetches the learner's state, which the next update changes.
        rollout_s: Seconds spent collecting.
        broadcast_s: Seconds spent sending weights.
    """

    collection: Collection
    report: UpdateReport
    weights: Weights
    progress: Progress
    faults: Faults
    learner_state: Callable[[], Arrays]
    rollout_s: float
    broadcast_s: float


class Observer(Protocol):
    """Who watches: called on the loop's own thread."""

    def on_group(self, collection: Collection) -> None:
        """A group has finished."""
        ...

    def on_update(self, record: UpdateRecord) -> None:
        """An update has ended, and all actors hold its weights."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How training ended.

    Attributes:
        exhausted: Why the search for mixed groups ended early, or none after all updates.
        last: Rollouts of the update that was under way when the search ended, or none.
    """

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

    From `start`, with the learner's state of that moment, it goes on as if it had never stopped.
    """
    start = start or Progress()
    admission = Admission(
        groups_per_update=sampling.groups_per_update, max_uniform_groups=sampling.max_uniform_groups, start=start
    )
    runtime.broadcast()

    def request(index: int) -> RolloutRequest:
        members = range(sampling.group_size)
        seeds = tuple(seed_of(seed, Purpose.TRAINING_ROLLOUTS, index, member) for member in members)
        return RolloutRequest(index, (stream.at(index),) * sampling.group_size, seeds)

    for update in range(start.update + 1, num_updates + 1):
        collection = Collection(update, sampling.groups_per_update)
        try:
            _fill_batch(
                runtime, admission, request, collection=collection, version=Version(update - 1), observers=observers
            )
        except SearchExhaustedError as exhausted:
            return Outcome(exhausted, collection)
        collected = time.perf_counter()
        report = runtime.update(admission.take_batch())
        learned = time.perf_counter()
        weights = runtime.broadcast()
        record = UpdateRecord(
            collection=collection,
            report=report,
            weights=weights,
            progress=admission.progress(update),
            faults=runtime.faults,
            learner_state=runtime.learner_state,
            rollout_s=collected - collection.started,
            broadcast_s=time.perf_counter() - learned,
        )
        for observer in observers:
            observer.on_update(record)
    return Outcome()


def _fill_batch(
    runtime: Runtime,
    admission: Admission,
    request: Callable[[int], RolloutRequest],
    *,
    collection: Collection,
    version: Version,
    observers: Sequence[Observer],
) -> None:
    """Dynamic sampling: draw, roll out and reject until the batch is full (Algorithm 1, lines 5 to 15).

    Raises:
        SearchExhaustedError: No mixed group within the limit; nothing is in flight any more.
    """
    while not admission.complete:
        while admission.num_wanted > 0:
            runtime.launch(request(admission.launch()))
        if admission.num_pending == 0:
            raise admission.explain_exhaustion()
        summary = runtime.next_summary()
        assert summary.version == version, "at lag 0 every group is made by the newest policy"
        verdict = admission.offer(summary)
        if verdict is Verdict.ACCEPTED:
            runtime.keep(summary.index)
        else:
            runtime.drop(summary.index)
        collection.count(summary, verdict)
        for observer in observers:
            observer.on_group(collection)
