"""A pool of Ray rollout actors that outlives them: lost requests run again, late ones get a second actor.

A request is all that its rollouts depend on (contexts and seeds), so a group that died with its actor comes
out the same, bit for bit, from another one. Why not RLlib's manager: docs/decisions/0003-actor-pool.md.
"""

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from ript_ray.errors import WorkerError
from ript_ray.rl.protocols import DispatchCounts
from ript_ray.runtime.actor_slot import ActorSlot, LoadingWeights, RollingOut, Starting
from ript_ray.runtime.capacity import ActorCapacity
from ript_ray.runtime.ray_calls import describe, is_ready
from ript_ray.types import GroupSummary, RolloutRequest, Version, Weights

POLL_S = 0.2
"""How often the pool looks at deadlines and at replacements that are due while it waits."""

MAX_INVALID = 3
"""Malformed groups in a row from one actor, before another one takes its place."""

MAX_FAILURES = 3
"""Requests in a row at which one actor's code raises, before another one takes its place."""


@dataclass(frozen=True)
class Limits:
    """What the pool puts up with.

    Attributes:
        start_s: Longest time for the start of an actor, and for taking weights.
        request_s: Longest time for one request.
        max_replacements: Actors replaced over the life of the pool.
        straggler_factor: A request that runs for this many times the median duration runs on a second actor
            as well, where one is idle; infinite for never.
        straggler_s: And for this long at least.
        max_attempts: Times one request is run before it, and not the actors, is taken for the cause.
        max_failed_starts: Starts that may fail in a row, at least: an actor that cannot be built at all must
            not be tried for hours.
    """

    start_s: float
    request_s: float
    max_replacements: int
    straggler_factor: float = 3.0
    straggler_s: float = 0.5
    max_attempts: int = 5
    max_failed_starts: int = 3

    def backoff_s(self, num_deaths: int) -> float:
        """Wait before a place is filled again that has lost so many actors since it last finished a request.

        None at first, then doubling up to half a minute.
        """
        return 0.0 if num_deaths <= 2 else min(30.0, 0.5 * 2.0 ** (num_deaths - 2))


@dataclass
class _Weights:
    """What every actor must hold before it gets work; none before the first broadcast."""

    reference: ray.ObjectRef | None = None
    checksum: str = ""
    version: Version | None = None


@dataclass
class _Counts:
    dispatched: int = 0
    lost: int = 0
    replaced: int = 0
    failed_starts: int = 0
    deaths: Counter[int] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    durations_s: deque[float] = field(default_factory=lambda: deque(maxlen=64))


class ActorPool:
    """Keeps every actor busy while there are requests, and replaces those that die or hang."""

    def __init__(
        self,
        start_actor: Callable[[], Any],
        num_actors: int,
        limits: Limits,
        *,
        capacity: ActorCapacity,
    ):
        """Start as many actors as there is room for.

        Args:
            start_actor: Starts a Ray actor made from `RolloutWorker` and returns its handle.
            num_actors: Places to fill.
            limits: What the pool puts up with.
            capacity: How many actors more the nodes hold.
        """
        self.num_actors = num_actors
        self._start_actor = start_actor
        self._limits = limits
        self._capacity = capacity
        self._weights = _Weights()
        self._actors: dict[int, ActorSlot] = {}
        self._restart_at = dict.fromkeys(range(num_actors), 0.0)
        self._queue: deque[RolloutRequest] = deque()
        self._finished: deque[tuple[GroupSummary, ray.ObjectRef]] = deque()
        self._counts = _Counts()
        self._start_due_actors()

    @property
    def num_starting(self) -> int:
        """Actors whose constructors run."""
        return sum(isinstance(actor.call, Starting) for actor in self._actors.values())

    @property
    def num_ready(self) -> int:
        """Actors that have started."""
        return len(self._actors) - self.num_starting

    @property
    def has_work(self) -> bool:
        """Whether a request is queued, at work, or finished and not fetched."""
        return bool(self._queue or self._finished) or any(actor.request for actor in self._actors.values())

    @property
    def dispatch_counts(self) -> DispatchCounts:
        """The books on requests."""
        running = sum(actor.request is not None for actor in self._actors.values()) + len(self._finished)
        counts = self._counts
        return DispatchCounts(counts.dispatched, counts.lost, running, counts.replaced)

    def submit(self, request: RolloutRequest) -> None:
        """Hand a request to an idle actor, or queue it."""
        self._queue.append(request)
        self._dispatch()

    def rerun(self, request: RolloutRequest, error: Exception) -> None:
        """Run a request once more whose group was lost after it had been answered."""
        self._retry(request, error)

    def next_finished(self) -> tuple[GroupSummary, ray.ObjectRef] | None:
        """The summary of a request that has finished, and a reference to its group; none if none has yet."""
        return self._finished.popleft() if self._finished else None

    def take_finished(self, index: int) -> tuple[GroupSummary, ray.ObjectRef] | None:
        """The same for one request."""
        for finished in self._finished:
            if finished[0].index == index:
                self._finished.remove(finished)
                return finished
        return None

    def load(self, reference: ray.ObjectRef, weights: Weights) -> None:
        """Have every actor take these weights before its next request; waits for those that are not at work now."""
        self._weights = _Weights(reference, weights.checksum, weights.version)
        self._dispatch()
        loads = {actor.call.reference for actor in self._actors.values() if isinstance(actor.call, LoadingWeights)}
        while any(actor.call and actor.call.reference in loads for actor in self._actors.values()):
            self.poll()

    def kill(self) -> None:
        """End every actor."""
        for actor in self._actors.values():
            ray.kill(actor.handle, no_restart=True)

    def poll(self, others: Sequence[ray.ObjectRef] = ()) -> None:
        """Give out work, replace what is due, and wait a moment for an actor, or one of `others`, to answer.

        Raises:
            WorkerError: The budget of replacements is spent, or one request fails wherever it is run.
        """
        self._start_due_actors()
        self._dispatch()
        calls = {actor.call.reference: actor for actor in self._actors.values() if actor.call}
        if not calls and not others:
            time.sleep(POLL_S)
            return
        ready, late = ray.wait([*calls, *others], timeout=POLL_S)
        now = time.monotonic()
        for reference in late:
            actor = calls.get(reference)
            if actor and actor.deadline <= now and not is_ready(reference):
                self._replace(actor, TimeoutError("no answer before its deadline"))
        if ready and ready[0] in calls:
            self._answered(calls[ready[0]])

    def _start_due_actors(self) -> None:
        """Start an actor in every place that is due, as far as the nodes have room."""
        now = time.monotonic()
        due_slots = [slot for slot, moment in self._restart_at.items() if moment <= now]
        if not due_slots and not self.num_starting:
            return
        free = self._capacity.free(len(self._actors), len(due_slots))
        for slot in due_slots[: max(0, free)]:
            del self._restart_at[slot]
            handle = self._start_actor()
            start = Starting(handle.__ray_ready__.remote())
            self._actors[slot] = ActorSlot(slot, handle, start, now + self._limits.start_s)
        starting = [actor for actor in self._actors.values() if isinstance(actor.call, Starting)]
        for actor in starting[: max(0, -free)]:  # their node has gone: not a failure of theirs
            ray.kill(actor.handle, no_restart=True)
            del self._actors[actor.slot]
            self._restart_at[actor.slot] = now

    def _dispatch(self) -> None:
        """Give every idle actor weights if its own are old, else a request, else a copy of a late one."""
        idle = [actor for actor in self._actors.values() if actor.call is None]
        for actor in sorted(idle, key=lambda actor: actor.num_failures):  # what failed on one may run on another
            if actor.version != self._weights.version:
                assert self._weights.version is not None
                load = actor.handle.load.remote(self._weights.reference)
                actor.call = LoadingWeights(load, self._weights.checksum, self._weights.version)
                actor.deadline = time.monotonic() + self._limits.start_s
            elif request := self._queue.popleft() if self._queue else self._straggler():
                self._counts.dispatched += 1
                summary, group = actor.handle.roll.options(num_returns=2).remote(request)
                actor.call = RollingOut(summary, group, request, time.monotonic())
                actor.deadline = time.monotonic() + self._limits.request_s

    def _straggler(self) -> RolloutRequest | None:
        """The request that has run longest, if it is late and no other actor runs it too.

        Only where its actor holds the present weights: then both copies give the same group, bit for bit, and
        taking the faster one cannot favour short episodes.
        """
        if not self._counts.durations_s:
            return None
        typical_s = statistics.median(self._counts.durations_s)
        late = time.monotonic() - max(self._limits.straggler_s, self._limits.straggler_factor * typical_s)
        copies = Counter(actor.request.index for actor in self._actors.values() if actor.request)
        wanted = [
            (actor.call.started, actor.request)
            for actor in self._actors.values()
            if isinstance(actor.call, RollingOut) and actor.request and actor.version == self._weights.version
            if actor.call.started < late and copies[actor.request.index] == 1
        ]
        return min(wanted, key=lambda entry: entry[0])[1] if wanted else None

    def _answered(self, actor: ActorSlot) -> None:
        call = actor.call
        assert call is not None
        try:
            answer = ray.get(call.reference, timeout=self._limits.start_s)
        except ray.exceptions.RayTaskError as error:
            self._raised(actor, error)
            return
        except ray.exceptions.RayError as error:
            self._replace(actor, error)
            return
        actor.call = None
        if isinstance(call, LoadingWeights):
            self._loaded(actor, call, answer)
        elif isinstance(call, RollingOut) and call.request is not None:
            self._rolled(actor, call, answer)

    def _loaded(self, actor: ActorSlot, call: LoadingWeights, checksum: str) -> None:
        if checksum != call.checksum:
            error = WorkerError(f"it holds weights {checksum}, not the learner's {call.checksum}")
            self._replace(actor, error, is_start=True)
            return
        actor.version = call.version
        self._counts.failed_starts = 0

    def _rolled(self, actor: ActorSlot, call: RollingOut, summary: GroupSummary) -> None:
        counts = self._counts
        counts.durations_s.append(time.monotonic() - call.started)
        counts.attempts.pop(summary.index, None)
        counts.deaths.pop(actor.slot, None)  # work gets done here again: the next fault finds an unspent back-off
        actor.num_failures = 0
        self._finished.append((summary, call.group))
        for other in self._actors.values():
            if other.request is not None and other.request.index == summary.index:
                assert isinstance(other.call, RollingOut)
                other.call = replace(other.call, request=None)
                counts.lost += 1
        actor.num_invalid = actor.num_invalid + 1 if summary.error else 0
        if actor.num_invalid >= MAX_INVALID:
            self._replace(actor, WorkerError(f"{MAX_INVALID} malformed groups in a row: {summary.error}"))

    def _raised(self, actor: ActorSlot, error: ray.exceptions.RayTaskError) -> None:
        """The actor's code raised: the process goes on, unless it could not even start, or keeps raising."""
        request, at_work = actor.request, isinstance(actor.call, RollingOut)
        if not at_work:
            self._replace(actor, error, is_start=True)
            return
        actor.num_failures += 1
        if actor.num_failures >= MAX_FAILURES:
            self._replace(actor, error)
            return
        actor.call = None
        if request is not None:
            self._retry(request, error)

    def _replace(self, actor: ActorSlot, error: Exception, *, is_start: bool = False) -> None:
        """Give an actor up; another one fills its place after a while."""
        del self._actors[actor.slot]
        ray.kill(actor.handle, no_restart=True)
        counts, limits = self._counts, self._limits
        lost_its_node = "node has died" in str(error)  # no fault of what was started there
        counts.failed_starts += (is_start or isinstance(actor.call, Starting)) and not lost_its_node
        max_failed_starts = max(limits.max_failed_starts, self.num_actors)
        if counts.replaced >= limits.max_replacements or counts.failed_starts >= max_failed_starts:
            raise WorkerError(
                f"rollout actor {actor.slot} was lost ({describe(error)}); {limits.max_replacements} may be replaced "
                f"(cluster.max-replacements) and {counts.replaced} have been, and {max_failed_starts} starts "
                f"may fail in a row and {counts.failed_starts} have"
            ) from error
        counts.replaced += 1
        counts.deaths[actor.slot] += 1
        self._restart_at[actor.slot] = time.monotonic() + limits.backoff_s(counts.deaths[actor.slot])
        if actor.request is not None:
            self._retry(actor.request, error)

    def _retry(self, request: RolloutRequest, error: Exception) -> None:
        """Book a copy of a request as lost; it runs again unless another copy is still running."""
        counts = self._counts
        counts.lost += 1
        counts.attempts[request.index] += 1
        if counts.attempts[request.index] >= self._limits.max_attempts:
            raise WorkerError(
                f"group {request.index} ({request.contexts[0].task}) failed {self._limits.max_attempts} times, "
                f"the last time because of {describe(error)}"
            ) from error
        if all(other.request is not request for other in self._actors.values()):
            self._queue.appendleft(request)
