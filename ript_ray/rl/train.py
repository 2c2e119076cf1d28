"""Algorithm 1 of RIPT-VLA on any runtime. Comments give the line of Algorithm 1 that they implement."""

import logging
import time
from collections.abc import Sequence
from functools import partial

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

logger = logging.getLogger(__name__)

MAX_SKIPPED_UPDATES = 3
"""Consecutive updates skipped for non-finite values that end the run."""


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
    """Post-train the policy until update `num_updates`, or until no mixed group is found within the limit.

    Resuming from `start` with the learner state of that moment gives the run that was never interrupted (bit for
    bit at lag 0).

    Raises:
        DivergenceError: Too many consecutive updates were skipped because of non-finite values.
    """
    progress = start or Progress()
    _check_divergence(progress, "before this run was resumed")
    buffer = GroupBuffer(sampling, num_updates=num_updates, start=progress)
    _warn_of_idle_actors(runtime, sampling)
    at_start = runtime.dispatch_counts  # it may have dispatched other requests before, e.g. an evaluation
    request_of = partial(group_request, stream, sampling=sampling, seed=seed)

    def ledger() -> Ledger:
        return reconcile(runtime.dispatch_counts, at_start, buffer, sampling.requests_per_group)

    runtime.broadcast()  # line 3, first update; later ones in _broadcast
    current = training = RolloutStats(progress.update + 1, sampling.groups_per_update, dynamic=sampling.dynamic)
    while buffer.update < num_updates:  # line 2
        while buffer.num_wanted > 0:  # lines 5 to 8, on the actors; the cap on groups in flight bounds the lag
            runtime.launch(request_of(buffer.launch()))
        runtime.run_ahead(request_of if buffer.is_searching else None, buffer.next_index)
        if buffer.ready:  # lines 9, 10 and 16 to 18, on the learner, while actors may roll out the next batch
            for rerun in runtime.start_update(buffer.take_batch()):
                verdict = buffer.replace(rerun.trained)
                current.replace(rerun.lost, rerun.trained)
                for callback in callbacks:
                    callback.on_group(current, rerun.trained, verdict)
            training, current = current.close(num_uniform_trained=buffer.num_uniform_in_training), current.next()
        if buffer.at_end:  # not in the paper, whose line 5 searches forever
            return TrainResult(carry_over(ledger(), Ledger()), buffer.explain_exhaustion(), current)
        event = runtime.next_event()
        if isinstance(event, GroupSummary):
            verdict = _admit(event, runtime, buffer, current)
            for callback in callbacks:
                callback.on_group(current, event, verdict)
        else:
            progress = _finish_update(event, buffer, progress)
            record = _broadcast(runtime, event, training, progress, ledger())
            for callback in callbacks:
                callback.on_update(record)
            _check_divergence(progress, event.error)  # after the callbacks, so that the skipped update is logged
            if sampling.max_policy_lag == 0:
                current.started = time.perf_counter()  # nothing was rolled out while the learner was busy
    return TrainResult(ledger())


def group_request(stream: ContextStream, index: int, *, sampling: Sampling, seed: int) -> RolloutRequest:
    """Request K rollouts of one context (lines 6 and 7), each with its own seed and, if any, its own noise."""
    members = range(sampling.group_size)
    seeds = tuple(seed_of(seed, Purpose.TRAINING_ROLLOUTS, index, member) for member in members)
    contexts = stream.members(index, sampling.group_size)
    return RolloutRequest(index, contexts, seeds, num_parts=sampling.requests_per_group)


def _admit(summary: GroupSummary, runtime: Runtime, buffer: GroupBuffer, stats: RolloutStats) -> Verdict:
    """Dynamic sampling (lines 11 to 14), if enabled: send a group to the learner, or discard it if it is rejected."""
    verdict = buffer.offer(summary)  # needs only the rewards, so a rejected record is never transferred
    if buffer.trains(verdict):
        runtime.send_to_learner(summary.index)
    else:
        runtime.discard(summary.index)
    stats.count(summary, verdict)
    return verdict


def _finish_update(report: UpdateReport, buffer: GroupBuffer, before: Progress) -> Progress:
    next_index = buffer.finish_update()
    return Progress(buffer.update, next_index, before.skipped_streak + 1 if report.error else 0)


def _broadcast(
    runtime: Runtime, report: UpdateReport, stats: RolloutStats, progress: Progress, ledger: Ledger
) -> UpdateRecord:
    """Send the new weights to the actors (line 3) and summarize the update."""
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
        usage=runtime.usage,
    )


def _warn_of_idle_actors(runtime: Runtime, sampling: Sampling) -> None:
    num_requests = sampling.groups_per_update * sampling.requests_per_group * (sampling.max_policy_lag + 1)
    if runtime.num_actors > num_requests:
        logger.warning(
            "%d rollout actors, but never more than %d requests at a time are sure to be needed (%d groups of %d "
            "requests, policy lag %d): the other actors only run ahead of need; "
            "a smaller sampling.rollouts-per-request gives them work",
            runtime.num_actors,
            num_requests,
            sampling.groups_per_update,
            sampling.requests_per_group,
            sampling.max_policy_lag,
        )


def _check_divergence(progress: Progress, problem: str | None) -> None:
    if progress.skipped_streak >= MAX_SKIPPED_UPDATES:
        raise DivergenceError(
            f"{progress.skipped_streak} updates in a row were skipped: {problem}; lower ppo.learning-rate"
        )
