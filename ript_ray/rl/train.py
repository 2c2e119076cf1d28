"""Algorithm 1 of RIPT-VLA, on any runtime: the whole of post-training on one screen."""

import time
from collections.abc import Sequence

from ript_ray.config.rl import Sampling
from ript_ray.errors import DivergenceError
from ript_ray.rl.callbacks import Collection, Observer, Outcome, UpdateRecord
from ript_ray.rl.context_stream import ContextStream
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.group_buffer import Admission
from ript_ray.rl.learner import UpdateReport
from ript_ray.rl.ledger import Ledger, go_on, settle
from ript_ray.rl.protocols import Runtime
from ript_ray.seeding import Purpose, seed_of
from ript_ray.types import GroupSummary, Progress, RolloutRequest

MAX_SKIPPED_UPDATES = 3
"""Updates in a row that may be skipped because something was not finite."""


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
