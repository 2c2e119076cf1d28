"""Algorithm 1 of RIPT-VLA, on any runtime: the whole of post-training on one screen."""

import time
from collections.abc import Sequence

from ript_ray.config.rl import Sampling
from ript_ray.errors import DivergenceError
from ript_ray.rl.callbacks import Callback, RolloutStats, TrainResult, UpdateRecord
from ript_ray.rl.context_stream import ContextStream
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.group_buffer import GroupBuffer
from ript_ray.rl.learner import UpdateReport
from ript_ray.rl.ledger import Ledger, carry_over, reconcile
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
    callbacks: Sequence[Callback] = (),
    start: Progress | None = None,
) -> TrainResult:
    """Update the policy until there have been `num_updates`, or until no mixed group is found within the limit.

    From `start`, with the learner's state of that moment, it goes on as if it had never stopped (at lag 0 to
    the bit).

    Raises:
        DivergenceError: Updates in a row were skipped because something was not finite.
    """
    progress = start or Progress()
    _refuse_divergence(progress, "before this run was resumed")
    buffer = GroupBuffer(
        groups_per_update=sampling.groups_per_update,
        max_uniform_groups=sampling.max_uniform_groups,
        max_policy_lag=sampling.max_policy_lag,
        num_updates=num_updates,
        start=progress,
    )
    at_start = runtime.dispatch_counts
    runtime.broadcast()
    current = training = RolloutStats(progress.update + 1, sampling.groups_per_update)
    while buffer.update < num_updates:
        while buffer.num_wanted > 0:
            runtime.launch(group_request(stream, buffer.launch(), group_size=sampling.group_size, seed=seed))
        if buffer.ready:
            runtime.start_update(buffer.take_batch())
            training, current = current.close(), RolloutStats(current.update + 1, sampling.groups_per_update)
        if buffer.at_end:
            ledger = carry_over(reconcile(runtime.dispatch_counts, at_start, buffer), Ledger())
            return TrainResult(ledger, buffer.explain_exhaustion(), current)
        event = runtime.next_event()
        if isinstance(event, GroupSummary):
            verdict = _admit(event, runtime, buffer, current)
            for callback in callbacks:
                callback.on_group(current, event, verdict)
        else:
            progress = _after(event, buffer, progress)
            record = _broadcast(
                runtime, event, training, progress, reconcile(runtime.dispatch_counts, at_start, buffer)
            )
            for callback in callbacks:
                callback.on_update(record)
            _refuse_divergence(progress, event.error)
            if sampling.max_policy_lag == 0:
                current.started = time.perf_counter()  # nothing was under way while the learner learned
    return TrainResult(reconcile(runtime.dispatch_counts, at_start, buffer))


def group_request(stream: ContextStream, index: int, *, group_size: int, seed: int) -> RolloutRequest:
    """The rollouts of one group: the same context for all, a seed of its own for each."""
    members = range(group_size)
    seeds = tuple(seed_of(seed, Purpose.TRAINING_ROLLOUTS, index, member) for member in members)
    return RolloutRequest(index, (stream.at(index),) * group_size, seeds)


def _admit(summary: GroupSummary, runtime: Runtime, buffer: GroupBuffer, stats: RolloutStats) -> Verdict:
    """Dynamic sampling: send a group that teaches something to the learner, drop any other."""
    verdict = buffer.offer(summary)
    if verdict is Verdict.ACCEPTED:
        runtime.send_to_learner(summary.index)
    else:
        runtime.discard(summary.index)
    stats.count(summary, verdict)
    return verdict


def _after(report: UpdateReport, buffer: GroupBuffer, before: Progress) -> Progress:
    """Where training stands once the update that `report` tells of is booked."""
    next_index = buffer.finish_update()
    return Progress(buffer.update, next_index, before.skipped_streak + 1 if report.error else 0)


def _broadcast(
    runtime: Runtime, report: UpdateReport, stats: RolloutStats, progress: Progress, ledger: Ledger
) -> UpdateRecord:
    """Send the new weights out (Algorithm 1, line 19), and say all that happened."""
    started = time.perf_counter()
    weights = runtime.broadcast()
    assert weights.version == progress.update
    return UpdateRecord(
        stats=stats,
        report=report,
        weights=weights,
        progress=progress,
        ledger=ledger,
        num_replaced=runtime.dispatch_counts.num_replaced,
        learner_state=runtime.learner_state,
        broadcast_s=time.perf_counter() - started,
    )


def _refuse_divergence(progress: Progress, problem: str | None) -> None:
    if progress.skipped_streak >= MAX_SKIPPED_UPDATES:
        raise DivergenceError(
            f"{progress.skipped_streak} updates in a row were skipped: {problem}; lower ppo.learning-rate"
        )
