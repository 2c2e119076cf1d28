"""Fault-tolerant actor pool: retries lost requests and runs stragglers speculatively on a second actor.

The rollouts of a request depend only on its contexts, its seeds and the weights, so a retry on another actor gives the
same group, bit for bit. Why not RLlib's actor manager: docs/decisions/0003-actor-pool.md.
"""

import itertools
import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from ript_ray.errors import WorkerError
from ript_ray.rl.protocols import DispatchCounts
from ript_ray.runtime.actor_faults import ActorFaults
from ript_ray.runtime.actor_slot import ActorSlot, Call, LoadingWeights, RollingOut, Starting
from ript_ray.runtime.capacity import ActorCapacity
from ript_ray.runtime.limits import MAX_FAILURES, MAX_INVALID, Limits
from ript_ray.runtime.pool_counts import PoolCounts
from ript_ray.runtime.processors import ProcessorLog
from ript_ray.runtime.ray_calls import is_ready, place_of
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
        usage: Memory and processor time of the actors.
    """

    def __init__(
        self,
        start_actor: Callable[[int], Any],
        limits: Limits,
        *,
        capacity: ActorCapacity,
        ahead: RunAhead,
        groups_per_actor: int = 1,
    ):
        """Start as many actors as fit.

        Args:
            start_actor: Starts a Ray actor of class `LoggedRolloutWorker` in a slot and returns its handle.
            limits: Timeouts and retry limits.
            capacity: How many actors there should be, and how many the nodes have room for.
            ahead: Provides requests for actors that would idle.
            groups_per_actor: Requests that an actor runs at a time.
        """
        self._start_actor = start_actor
        self._limits = limits
        self._capacity = capacity
        self._ahead = ahead
        self._weights = _Weights()
        self._actors: dict[int, ActorSlot] = {}
        self._starting: dict[int, ActorSlot] = {}
        self._idle = IdleActors(groups_per_actor)
        self._running = RunningRequests()
        self._restart_at: dict[int, float] = {}
        self._queue: deque[RolloutRequest] = deque()
        self._finished: deque[Finished] = deque()
        self._counts = PoolCounts()
        self._faults = ActorFaults(limits)
        self._processors = ProcessorLog()
        self._logs = LogRelay("actor")
        self.usage = UsageLog()
        self._follow_nodes()

    @property
    def num_actors(self) -> int:
        """Number of actors that there should be now."""
        return self._capacity.num_wanted

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
        for actor in self._idle.take_all():
            self._release(actor)

    def kill(self) -> None:
        """Kill all actors."""
        self._logs.flush()
        for actor in self._actors.values():
            ray.kill(actor.handle, no_restart=True)

    def poll(self, others: Sequence[ray.ObjectRef] = ()) -> None:
        """Follow the nodes, dispatch requests, and wait up to `POLL_S` for actors, or one of `others`, to answer.

        Raises:
            WorkerError: The limit of replacements is reached, or one request failed `max_attempts` times.
        """
        self._follow_nodes()
        self._dispatch()
        calls = {call.reference: call for actor in self._actors.values() for call in actor.calls}
        if not calls and not others:
            time.sleep(POLL_S)
            return
        ready, pending = ray.wait([*calls, *others], timeout=POLL_S)
        if ready and pending:  # handle all answers at once: one wait costs as much as there are calls
            more, pending = ray.wait(pending, num_returns=len(pending), timeout=0)
            ready += more
        now = time.monotonic()
        for reference in pending:
            call = calls.get(reference)
            if call and call.is_pending and call.deadline <= now and not is_ready(reference):
                self._replace(call, TimeoutError(f"no answer within {call.timeout_s:g} s"))
        for reference in ready:
            call = calls.get(reference)
            if call and call.is_pending:  # not if its actor has failed in another one
                self._on_answer(call)

    def vacate(self, nodes: Collection[str]) -> None:
        """Kill the actors on these nodes, so that a learner finds room, and starting ones, which may be anywhere.

        Others start as soon as there is room for them.
        """
        for actor in [actor for actor in self._actors.values() if actor.node is None or actor.node in nodes]:
            self._restart_at[actor.slot] = 0.0
            for call in self._remove(actor):
                self._lose(call, WorkerError("its actor had to make room"), is_fault=False)

    def _follow_nodes(self) -> None:
        """Let actors go whose node is about to leave, and start one in every empty slot that is due, if there is room.

        There are as many slots as wanted, besides those of actors that are about to go.
        """
        room = self._capacity.look()
        if room is None:
            return
        for actor in list(self._actors.values()):
            if actor.node in room.leaving:
                actor.is_leaving = True
                self._idle.discard(actor)
                self._release(actor)
        num_staying = sum(not actor.is_leaving for actor in self._actors.values())
        self._resize(self.num_actors - num_staying)
        now = time.monotonic()
        due_slots = [slot for slot, moment in self._restart_at.items() if moment <= now]
        free = self._capacity.free(num_staying, len(due_slots))
        for slot in due_slots[: max(0, free)]:
            self._start(slot)
        for actor in list(self._starting.values())[: max(0, -free)]:  # their node is lost: not a failed start
            self._remove(actor)
            self._restart_at[actor.slot] = now

    def _resize(self, num_empty: int) -> None:
        """Add empty slots, with the lowest numbers, or drop some, so that there are so many."""
        unused = (slot for slot in itertools.count() if slot not in self._actors and slot not in self._restart_at)
        while len(self._restart_at) < num_empty:
            self._restart_at[next(unused)] = 0.0
        while len(self._restart_at) > max(0, num_empty):
            slot, _ = self._restart_at.popitem()
            self.usage.end(slot)

    def _start(self, slot: int) -> None:
        del self._restart_at[slot]
        handle = self._start_actor(slot)
        actor = ActorSlot(slot, self._counts.started, handle)
        actor.calls.append(Starting(actor, place_of(handle), self._limits.start_timeout_s))
        self._actors[slot] = self._starting[slot] = actor
        self._counts.started += 1

    def _remove(self, actor: ActorSlot) -> list[Call]:
        """Kill an actor; returns the calls that it had not answered."""
        del self._actors[actor.slot]
        self._starting.pop(actor.slot, None)
        self._idle.discard(actor)
        ray.kill(actor.handle, no_restart=True)
        calls, actor.calls = actor.calls, []
        return calls

    def _release(self, actor: ActorSlot) -> None:
        """Have an actor that is not busy load the current weights, if it lacks them; with them it is idle.

        One that is leaving goes as soon as it is not busy.
        """
        if actor.is_leaving:
            if not actor.calls:
                self._remove(actor)
                self.usage.end(actor.slot)
                logger.info("rollout actor %d has finished on a node that is about to leave", actor.slot)
            return
        if actor.version == self._weights.version:
            self._idle.add(actor)
            return
        if actor.calls:  # one version rolls out all of a group
            return
        assert self._weights.version is not None
        # Algorithm 1, line 3: sampling policy <- policy
        load = actor.handle.load_logged.remote(self._weights.reference)
        timeout_s, checksum, version = self._limits.start_timeout_s, self._weights.checksum, self._weights.version
        actor.calls.append(LoadingWeights(actor, load, timeout_s, checksum=checksum, version=version))

    def _dispatch(self) -> None:
        """Give idle actors the queued requests, then copies of stragglers, then requests ahead of the training loop.

        A retry prefers healthy actors.
        """
        while self._idle and (request := self._next_request(self._idle.first)):
            actor = self._idle.take()
            self._counts.dispatched += 1
            # Lines 7-8: K rollouts of one context. Two results, so that the driver fetches the summary alone.
            summary, group = actor.handle.roll_logged.options(num_returns=2).remote(request)
            num_failures, longest_s = self._counts.attempts[key_of(request)], max(self._counts.durations_s, default=0.0)
            timeout_s = self._limits.request_timeout_s(num_failures=num_failures, longest_s=longest_s)
            call = RollingOut(actor, summary, timeout_s, group=group, request=request)
            actor.calls.append(call)
            self._running.add(call)

    def _next_request(self, actor: ActorSlot) -> RolloutRequest | None:
        if self._queue:
            return self._queue.popleft()
        return self._straggler(actor) or self._ahead.next_request()

    def _straggler(self, actor: ActorSlot) -> RolloutRequest | None:
        """Return the longest-running request if it is a straggler and no other actor runs it too, else none.

        Only if its actor holds the current weights and has a processor of the same kind: then both copies give the same
        group, bit for bit, and taking the faster one cannot bias the batch towards short episodes.
        """
        if not self._counts.durations_s:
            return None
        median_s = statistics.median(self._counts.durations_s)
        latest_start = time.monotonic() - max(self._limits.min_straggler_s, self._limits.straggler_factor * median_s)
        return self._running.oldest_single(actor, latest_start)

    def _on_answer(self, call: Call) -> None:
        call.actor.calls.remove(call)
        self._handle_answer(call)
        if self._actors.get(call.actor.slot) is call.actor:
            self._release(call.actor)

    def _handle_answer(self, call: Call) -> None:
        actor = call.actor
        try:
            answer = ray.get(call.reference, timeout=self._limits.start_timeout_s)
        except ray.exceptions.TaskCancelledError:
            return
        except ray.exceptions.RayTaskError as error:
            self._on_exception(call, error)
            return
        except ray.exceptions.RayError as error:
            self._replace(call, error)
            return
        if self._starting.pop(actor.slot, None):
            actor.node, actor.processor = answer
            self._processors.note(actor.slot, actor.processor)
        if isinstance(answer, Logged):
            self._logs.relay(actor.slot, answer.entries)
            self.usage.note(actor.slot, answer.usage)
        if isinstance(call, LoadingWeights):
            self._on_loaded(call, answer.value)
        elif isinstance(call, RollingOut) and call.request is not None:
            self._on_rolled(call, answer.value)

    def _on_loaded(self, call: LoadingWeights, checksum: str) -> None:
        if checksum != call.checksum:
            error = WorkerError(f"checksum of its weights is {checksum}, the learner's is {call.checksum}")
            self._replace(call, error, is_start=True)
            return
        call.actor.version = call.version
        self._faults.note_start()

    def _on_rolled(self, call: RollingOut, summary: GroupSummary) -> None:
        actor, counts = call.actor, self._counts
        counts.durations_s.append(time.monotonic() - call.started)
        counts.attempts.pop(key_of(summary), None)
        self._faults.note_result(actor.slot)
        actor.num_failures = 0
        self._finished.append((summary, call.group))
        self._running.discard(call)
        call.request = None
        counts.duplicated += self._cancel_copies(key_of(summary))
        actor.num_invalid = actor.num_invalid + 1 if summary.error else 0
        if summary.error:
            logger.warning("group %d of rollout actor %d is malformed: %s", summary.index, actor.slot, summary.error)
        if actor.num_invalid >= MAX_INVALID:
            self._replace(call, WorkerError(f"{MAX_INVALID} malformed groups in a row: {summary.error}"))

    def _cancel_copies(self, key: RequestKey) -> int:
        """Cancel the running copies of a request, whose answers will be ignored; returns their number."""
        calls = self._running.finish(key)
        for call in calls:
            call.request = None
            ray.cancel(call.reference)  # seen by the actor before its next policy call
        return len(calls)

    def _on_exception(self, call: Call, error: ray.exceptions.RayTaskError) -> None:
        """Retry a request whose code raised; replace the actor only if it could not start or keeps raising."""
        actor = call.actor
        self._logs.relay_from(actor.slot, error)
        if not isinstance(call, RollingOut):
            self._replace(call, error, is_start=True)
            return
        actor.num_failures += 1
        if actor.num_failures >= MAX_FAILURES:
            self._replace(call, error)
        else:
            self._lose(call, error)

    def _replace(self, call: Call, error: Exception, *, is_start: bool = False) -> None:
        """Kill an actor that has failed in a call; another one fills its slot after the backoff."""
        actor = call.actor
        others = [each for each in self._remove(actor) if each is not call]
        is_start = is_start or isinstance(call, Starting)
        is_extra = self._capacity.follows_nodes and self.num_ready > 0
        backoff_s, is_fault = self._faults.add(
            actor, error, is_start=is_start, num_actors=self.num_actors, is_extra=is_extra
        )
        self._restart_at[actor.slot] = time.monotonic() + backoff_s
        self._counts.replaced += 1
        for lost in (call, *others):  # any of them may be the cause
            self._lose(lost, error, is_fault=is_fault)

    def _lose(self, call: Call, error: Exception, *, is_fault: bool = True) -> None:
        """Retry the request of a call that has failed, if it is still needed; see `_retry`."""
        if isinstance(call, RollingOut) and call.request is not None:
            self._running.discard(call)
            self._retry(call.request, error, is_fault=is_fault)

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
            self._counts.count_attempt(request, error, self._limits.max_attempts)
        if not is_running:
            self._queue.appendleft(request)
