"""Fault-tolerant actor pool: retries lost requests and runs stragglers speculatively on a second actor.

The rollouts of a request depend only on its contexts, its seeds and the weights, so a retry on another actor gives the
same group, bit for bit. Why not RLlib's actor manager: docs/decisions/0003-actor-pool.md.
"""

import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from ript_ray.errors import WorkerError
from ript_ray.rl.protocols import DispatchCounts
from ript_ray.runtime.actor_slot import ActorSlot, LoadingWeights, RollingOut, Starting
from ript_ray.runtime.capacity import ActorCapacity
from ript_ray.runtime.limits import MAX_FAILURES, MAX_INVALID, Limits, RecentFaults
from ript_ray.runtime.pool_counts import PoolCounts
from ript_ray.runtime.ray_calls import describe, is_ready, live_nodes, lost_its_node, place_of, was_killed
from ript_ray.runtime.remote_logs import Logged, LogRelay
from ript_ray.runtime.run_ahead import RunAhead
from ript_ray.runtime.schedule import IdleActors, RequestKey, RunningRequests, key_of
from ript_ray.runtime.usage import UsageLog
from ript_ray.types import GroupSummary, RolloutRequest, Version, Weights

Finished = tuple[GroupSummary, ray.ObjectRef]
"""Summary of a finished request, and a reference to its group, or part of a group."""

POLL_S = 0.2
"""Longest wait before deadlines and due restarts are checked again, in seconds."""

logger = logging.getLogger(__name__)


@dataclass
class _Weights:
    """The weights an actor must hold before it gets a request; none before the first broadcast."""

    reference: ray.ObjectRef | None = None
    checksum: str = ""
    version: Version | None = None


class ActorPool:
    """Keeps every actor busy while there are requests; replaces actors that die, hang or keep failing.

    Attributes:
        num_actors: Number of slots.
        usage: Memory and processor time of the actors.
    """

    def __init__(
        self,
        start_actor: Callable[[], Any],
        num_actors: int,
        limits: Limits,
        *,
        capacity: ActorCapacity,
        ahead: RunAhead,
    ):
        """Start as many actors as fit.

        Args:
            start_actor: Starts a Ray actor of class `LoggedRolloutWorker` and returns its handle.
            num_actors: Number of slots.
            limits: Timeouts and retry limits.
            capacity: Capacity of the nodes for more actors.
            ahead: Provides requests for actors that would idle.
        """
        self.num_actors = num_actors
        self._start_actor = start_actor
        self._limits = limits
        self._capacity = capacity
        self._ahead = ahead
        self._weights = _Weights()
        self._actors: dict[int, ActorSlot] = {}
        self._starting: dict[int, ActorSlot] = {}
        self._idle = IdleActors()
        self._running = RunningRequests()
        self._restart_at = dict.fromkeys(range(num_actors), 0.0)
        self._queue: deque[RolloutRequest] = deque()
        self._finished: deque[Finished] = deque()
        self._counts = PoolCounts()
        self._faults = RecentFaults(limits.replacement_period_s)
        self._logs = LogRelay("actor")
        self.usage = UsageLog()
        self._start_due_actors()

    @property
    def num_starting(self) -> int:
        """Number of actors whose constructors are running."""
        return len(self._starting)

    @property
    def num_ready(self) -> int:
        """Number of actors that have started."""
        return len(self._actors) - self.num_starting

    @property
    def has_work(self) -> bool:
        """Whether a request is queued, running, or finished but not fetched."""
        return bool(self._queue or self._finished or self._running)

    @property
    def dispatch_counts(self) -> DispatchCounts:
        """Counts of dispatched, lost and running requests."""
        return self._counts.dispatch_counts(num_running=len(self._running) + len(self._finished))

    def submit(self, request: RolloutRequest) -> None:
        """Dispatch a request to an idle actor, or queue it."""
        self._queue.append(request)
        self._dispatch()

    def cancel(self, key: RequestKey) -> None:
        """Stop a request that runs ahead of the training loop, if it is running."""
        self._counts.speculated += self._cancel_copies(key)

    def rerun(self, request: RolloutRequest, error: Exception) -> None:
        """Run a finished request again whose group has been lost."""
        self._retry(request, error)

    def next_finished(self) -> Finished | None:
        """Return the summary of the next finished request and a reference to its group, or none."""
        return self._finished.popleft() if self._finished else None

    def load(self, reference: ray.ObjectRef, weights: Weights) -> None:
        """Have every actor load these weights before its next request; returns at once."""
        self._weights = _Weights(reference, weights.checksum, weights.version)
        for actor in [self._idle.take() for _ in range(len(self._idle))]:
            self._release(actor)

    def kill(self) -> None:
        """Kill all actors."""
        self._logs.flush()
        for actor in self._actors.values():
            ray.kill(actor.handle, no_restart=True)

    def poll(self, others: Sequence[ray.ObjectRef] = ()) -> None:
        """Start due actors, dispatch requests, and wait up to `POLL_S` for actors, or one of `others`, to answer.

        Raises:
            WorkerError: The limit of replacements is reached, or one request failed `max_attempts` times.
        """
        self._start_due_actors()
        self._dispatch()
        calls = {actor.call.reference: actor for actor in self._actors.values() if actor.call}
        if not calls and not others:
            time.sleep(POLL_S)
            return
        ready, pending = ray.wait([*calls, *others], timeout=POLL_S)
        if ready and pending:  # handle all answers at once: one wait costs as much as there are calls
            more, pending = ray.wait(pending, num_returns=len(pending), timeout=0)
            ready += more
        now = time.monotonic()
        for reference in pending:
            actor = calls.get(reference)
            if actor and actor.deadline <= now and not is_ready(reference):
                self._replace(actor, TimeoutError(f"no answer within {self._timeout_of(actor):g} s"))
        for reference in ready:
            if reference in calls:
                self._on_answer(calls[reference])

    def _timeout_of(self, actor: ActorSlot) -> float:
        if not isinstance(actor.call, RollingOut):
            return self._limits.start_timeout_s
        return actor.deadline - actor.call.started

    def _start_due_actors(self) -> None:
        """Start an actor in every empty slot whose backoff has passed, as capacity allows."""
        now = time.monotonic()
        due_slots = [slot for slot, moment in self._restart_at.items() if moment <= now]
        if not due_slots and not self.num_starting:
            return
        free = self._capacity.free(len(self._actors), len(due_slots))
        for slot in due_slots[: max(0, free)]:
            del self._restart_at[slot]
            handle = self._start_actor()
            start = Starting(place_of(handle))
            actor = ActorSlot(slot, self._counts.started, handle, start, now + self._limits.start_timeout_s)
            self._actors[slot] = self._starting[slot] = actor
            self._counts.started += 1
        for actor in list(self._starting.values())[: max(0, -free)]:  # their node is lost: not a failed start
            ray.kill(actor.handle, no_restart=True)
            del self._actors[actor.slot], self._starting[actor.slot]
            self._restart_at[actor.slot] = now

    def _release(self, actor: ActorSlot) -> None:
        """Have an actor without a call load the current weights, if it lacks them; then it is idle."""
        if actor.version == self._weights.version:
            self._idle.add(actor)
            return
        assert self._weights.version is not None
        # Algorithm 1, line 3: sampling policy <- policy
        load = actor.handle.load_logged.remote(self._weights.reference)
        actor.call = LoadingWeights(load, self._weights.checksum, self._weights.version)
        actor.deadline = time.monotonic() + self._limits.start_timeout_s

    def _dispatch(self) -> None:
        """Give idle actors the queued requests, then copies of stragglers, then requests ahead of the training loop.

        A retry prefers healthy actors.
        """
        while self._idle and (request := self._next_request(self._idle.first)):
            actor = self._idle.take()
            self._counts.dispatched += 1
            # Lines 7-8: K rollouts of one context. Two results, so that the driver fetches the summary alone.
            summary, group = actor.handle.roll_logged.options(num_returns=2).remote(request)
            actor.call = RollingOut(summary, group, request, time.monotonic())
            key = key_of(request)
            num_failures, longest_s = self._counts.attempts[key], max(self._counts.durations_s, default=0.0)
            timeout_s = self._limits.request_timeout_s(num_failures=num_failures, longest_s=longest_s)
            actor.deadline = actor.call.started + timeout_s
            self._running.add(actor, key)

    def _next_request(self, actor: ActorSlot) -> RolloutRequest | None:
        if self._queue:
            return self._queue.popleft()
        return self._straggler(actor.processor) or self._ahead.next_request()

    def _straggler(self, processor: str) -> RolloutRequest | None:
        """Return the longest-running request if it is a straggler and no other actor runs it too, else none.

        Only if its actor holds the current weights and has a processor of the same kind: then both copies give the same
        group, bit for bit, and taking the faster one cannot bias the batch towards short episodes.
        """
        if not self._counts.durations_s:
            return None
        median_s = statistics.median(self._counts.durations_s)
        latest_start = time.monotonic() - max(self._limits.min_straggler_s, self._limits.straggler_factor * median_s)
        return self._running.oldest_single(self._weights.version, processor, latest_start)

    def _on_answer(self, actor: ActorSlot) -> None:
        self._handle_answer(actor)
        if actor.call is None and self._actors.get(actor.slot) is actor:
            self._release(actor)

    def _handle_answer(self, actor: ActorSlot) -> None:
        call = actor.call
        assert call is not None
        try:
            answer = ray.get(call.reference, timeout=self._limits.start_timeout_s)
        except ray.exceptions.TaskCancelledError:
            actor.call = None
            return
        except ray.exceptions.RayTaskError as error:
            self._on_exception(actor, error)
            return
        except ray.exceptions.RayError as error:
            self._replace(actor, error)
            return
        actor.call = None
        if self._starting.pop(actor.slot, None):
            actor.node, actor.processor = answer
        if isinstance(answer, Logged):
            self._logs.relay(actor.slot, answer.entries)
            self.usage.note(actor.slot, answer.usage)
        if isinstance(call, LoadingWeights):
            self._on_loaded(actor, call, answer.value)
        elif isinstance(call, RollingOut) and call.request is not None:
            self._on_rolled(actor, call, answer.value)

    def _on_loaded(self, actor: ActorSlot, call: LoadingWeights, checksum: str) -> None:
        if checksum != call.checksum:
            error = WorkerError(f"checksum of its weights is {checksum}, the learner's is {call.checksum}")
            self._replace(actor, error, is_start=True)
            return
        actor.version = call.version
        self._counts.failed_starts = self._counts.killed_starts = 0

    def _on_rolled(self, actor: ActorSlot, call: RollingOut, summary: GroupSummary) -> None:
        counts = self._counts
        counts.durations_s.append(time.monotonic() - call.started)
        counts.attempts.pop(key_of(summary), None)
        counts.deaths.pop(actor.slot, None)  # the slot works again: reset its backoff
        actor.num_failures = 0
        self._finished.append((summary, call.group))
        self._running.discard(actor)
        counts.duplicated += self._cancel_copies(key_of(summary))
        actor.num_invalid = actor.num_invalid + 1 if summary.error else 0
        if summary.error:
            logger.warning("group %d of rollout actor %d is malformed: %s", summary.index, actor.slot, summary.error)
        if actor.num_invalid >= MAX_INVALID:
            self._replace(actor, WorkerError(f"{MAX_INVALID} malformed groups in a row: {summary.error}"))

    def _cancel_copies(self, key: RequestKey) -> int:
        """Cancel the running copies of a request, whose answers will be ignored; returns their number."""
        actors = self._running.finish(key)
        for actor in actors:
            assert isinstance(actor.call, RollingOut)
            actor.call = replace(actor.call, request=None)
            ray.cancel(actor.call.reference)  # seen by the actor before its next policy call
        return len(actors)

    def _on_exception(self, actor: ActorSlot, error: ray.exceptions.RayTaskError) -> None:
        """Retry a request whose code raised; replace the actor only if it could not start or keeps raising."""
        self._logs.relay_from(actor.slot, error)
        request = actor.request
        if not isinstance(actor.call, RollingOut):
            self._replace(actor, error, is_start=True)
            return
        actor.num_failures += 1
        if actor.num_failures >= MAX_FAILURES:
            self._replace(actor, error)
            return
        actor.call = None
        self._running.discard(actor)
        if request is not None:
            self._retry(request, error)

    def _replace(self, actor: ActorSlot, error: Exception, *, is_start: bool = False) -> None:
        """Kill an actor; another one fills its slot after the backoff."""
        del self._actors[actor.slot]
        self._starting.pop(actor.slot, None)
        self._running.discard(actor)
        ray.kill(actor.handle, no_restart=True)
        if lost_its_node(error, actor.node):
            self._restart_at[actor.slot] = time.monotonic()  # as capacity allows
            logger.warning("rollout actor %d is lost with its node; replacing it", actor.slot)
            is_fault = False
        else:
            is_fault = self._count_fault(actor, error, is_start=is_start or isinstance(actor.call, Starting))
        self._counts.replaced += 1
        if actor.request is not None:
            self._retry(actor.request, error, is_fault=is_fault)

    def _count_fault(self, actor: ActorSlot, error: Exception, *, is_start: bool) -> bool:
        """Count a failure of an actor and plan its replacement; return whether its node can be ruled out as the cause.

        Raises:
            WorkerError: A limit is reached.
        """
        counts, limits, now = self._counts, self._limits, time.monotonic()
        is_certain = not isinstance(error, ray.exceptions.ActorUnavailableError)  # so begins the death of a node
        num_recent = self._faults.count(now, live_nodes())
        counts.killed_starts += is_start and is_certain and was_killed(error)
        counts.failed_starts += is_start and is_certain and not was_killed(error)
        max_failed = max(limits.max_failed_starts, self.num_actors)
        max_killed = max(limits.max_killed_starts, self.num_actors)
        starts_failed = counts.failed_starts >= max_failed or counts.killed_starts >= max_killed
        if num_recent + is_certain > limits.max_replacements or starts_failed:
            raise WorkerError(
                f"rollout actor {actor.slot} failed ({describe(error)}) and is not replaced: "
                f"{num_recent} of at most {limits.max_replacements} actors have been replaced within "
                f"{limits.replacement_period_s:g} s (cluster.max-replacements), {counts.failed_starts} of at most "
                f"{max_failed} consecutive starts have failed, {counts.killed_starts} of at most {max_killed} actors "
                "were killed while they started"
            ) from error
        self._faults.add(now, actor.node, is_certain=is_certain)
        counts.deaths[actor.slot] += is_certain
        backoff_s = limits.backoff_s(counts.deaths[actor.slot])
        self._restart_at[actor.slot] = now + backoff_s
        logger.warning(
            "rollout actor %d failed (%s); replacing it in %g s, replacement %d of at most %d within %g s",
            actor.slot,
            describe(error),
            backoff_s,
            num_recent + is_certain,
            limits.max_replacements,
            limits.replacement_period_s,
        )
        return is_certain

    def _retry(self, request: RolloutRequest, error: Exception, *, is_fault: bool = True) -> None:
        """Count a copy of a request as lost; queue the request again unless it is running or nobody waits for it.

        Args:
            request: The request.
            error: Why the copy is lost.
            is_fault: Whether the request itself may be the cause.
        """
        self._counts.lost += 1
        is_running = key_of(request) in self._running
        if not is_running and self._ahead.postpone(request):
            return
        if is_fault:
            self._count_attempt(request, error)
        if not is_running:
            self._queue.appendleft(request)

    def _count_attempt(self, request: RolloutRequest, error: Exception) -> None:
        self._counts.attempts[key_of(request)] += 1
        what = f"group {request.index} ({request.contexts[0].task}) failed"
        num_attempts, max_attempts = self._counts.attempts[key_of(request)], self._limits.max_attempts
        if num_attempts >= max_attempts:
            raise WorkerError(f"{what} {max_attempts} times, last error: {describe(error)}") from error
        logger.warning("%s, attempt %d of %d: %s", what, num_attempts, max_attempts, describe(error))
