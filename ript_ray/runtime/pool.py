"""A pool of Ray rollout actors that outlives them: one request per actor at a time, lost requests run again.

A request is all that its rollouts depend on (contexts and seeds), so a group that died with its actor comes
out the same, bit for bit, from another one. Why not RLlib's manager: docs/decisions/0003-actor-pool.md.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ray

from ript_ray.errors import WorkerError
from ript_ray.types import Faults, GroupSummary, RolloutRequest

MAX_FAILED_STARTS = 3
"""Starts that may fail in a row: an actor that cannot be built at all must not be tried for hours."""

POLL_S = 0.2
"""How often the pool looks at deadlines and at replacements that are due while it waits."""


@dataclass(frozen=True)
class Limits:
    """What the pool puts up with.

    Attributes:
        start_s: Longest time from the start of an actor until it holds the present weights.
        request_s: Longest time for one request.
        max_replacements: Actors replaced over the life of the pool.
        max_attempts: Times one request is run before it, and not the actors, is taken for the cause.
    """

    start_s: float
    request_s: float
    max_replacements: int
    max_attempts: int = 5

    def backoff_s(self, num_replacements: int) -> float:
        """Wait before the next replacement: none at first, then doubling up to half a minute."""
        return 0.0 if num_replacements <= 2 else min(30.0, 0.5 * 2.0 ** (num_replacements - 2))


@dataclass
class _Actor:
    """One place in the pool and the process that fills it now."""

    place: int
    handle: Any
    starting: ray.ObjectRef | None
    deadline: float
    num_failures: int = 0
    request: RolloutRequest | None = None
    answers: tuple[ray.ObjectRef, ray.ObjectRef] | None = None

    @property
    def awaited(self) -> ray.ObjectRef | None:
        """What this actor must answer before its deadline, if anything."""
        return self.starting or (self.answers[0] if self.answers else None)


class ActorPool:
    """Keeps every actor busy while there are requests, and replaces those that die or hang."""

    def __init__(self, start_actor: Callable[[], Any], num_actors: int, limits: Limits):
        """Start the actors.

        Args:
            start_actor: Starts a Ray actor made from `RolloutWorker` and returns its handle.
            num_actors: Places to fill.
            limits: What the pool puts up with.
        """
        self.faults = Faults()
        self._failed_starts = 0
        self._num_recent = 0
        self._start_actor = start_actor
        self._limits = limits
        self._weights: ray.ObjectRef | None = None
        self._checksum: str | None = None
        self._actors = {place: self._start(place) for place in range(num_actors)}
        self._due: dict[int, float] = {}
        self._queue: deque[RolloutRequest] = deque()
        self._attempts: Counter[int] = Counter()

    @property
    def num_actors(self) -> int:
        """Places in the pool."""
        return len(self._actors) + len(self._due)

    def await_start(self) -> None:
        """Wait until every actor has answered, or has been given up.

        Raises:
            WorkerError: The budget of replacements is spent.
        """
        while self._due or any(actor.starting for actor in self._actors.values()):
            self._tend()

    def submit(self, request: RolloutRequest) -> None:
        """Hand a request to an idle actor, or queue it."""
        self._queue.append(request)
        self._dispatch()

    def next_finished(self) -> tuple[GroupSummary, ray.ObjectRef]:
        """Wait for a request to finish.

        Returns:
            Its summary, and a reference to the group.

        Raises:
            WorkerError: The budget of replacements is spent, or one request fails wherever it is run.
        """
        while (finished := self._tend()) is None:
            pass
        return finished

    def load(self, weights: ray.ObjectRef, checksum: str) -> None:
        """Send weights to every actor and check what arrived. Nothing may be running."""
        self._weights, self._checksum = weights, checksum
        loading = {actor.place: actor.handle.load.remote(weights) for actor in self._actors.values()}
        deadline = time.monotonic() + self._limits.start_s
        for place, answer in loading.items():
            actor = self._actors[place]
            if actor.starting:
                actor.starting = answer  # it follows the load of its start, which may have had older weights
                continue
            try:
                self._check(place, ray.get(answer, timeout=max(0.0, deadline - time.monotonic())))
            except ray.exceptions.RayError as error:
                self._replace(place, error)

    def kill(self) -> None:
        """End every actor."""
        for actor in self._actors.values():
            ray.kill(actor.handle, no_restart=True)

    def _start(self, place: int) -> _Actor:
        handle = self._start_actor()
        ready = handle.load.remote(self._weights) if self._weights else handle.__ray_ready__.remote()
        return _Actor(place, handle, ready, time.monotonic() + self._limits.start_s)

    def _tend(self) -> tuple[GroupSummary, ray.ObjectRef] | None:
        """Replace what is due, wait a moment, and handle one actor that has answered or is late."""
        now = time.monotonic()
        for place in [place for place, due in self._due.items() if due <= now]:
            del self._due[place]
            self._actors[place] = self._start(place)
        self._dispatch()
        awaited = {actor.awaited: actor for actor in self._actors.values() if actor.awaited}
        if not awaited:
            time.sleep(POLL_S)
            return None
        ready, late = ray.wait(list(awaited), timeout=POLL_S)
        for reference in late:
            actor = awaited[reference]
            if actor.deadline <= now and not _has_answered(reference):
                self._replace(actor.place, TimeoutError("no answer before its deadline"))
        return self._answered(awaited[ready[0]]) if ready else None

    def _answered(self, actor: _Actor) -> tuple[GroupSummary, ray.ObjectRef] | None:
        try:
            answer = ray.get(actor.awaited, timeout=self._limits.request_s)
            if actor.starting:
                self._check(actor.place, answer)
                actor.starting = None
                self._failed_starts = 0
                return None
        except ray.exceptions.RayTaskError as error:
            self._failed(actor, error)
            return None
        except ray.exceptions.RayError as error:
            self._replace(actor.place, error)
            return None
        assert actor.answers is not None
        assert actor.request is not None
        group = actor.answers[1]
        self._attempts.pop(actor.request.index, None)
        self._num_recent = 0  # work gets done again: the next fault finds an unspent back-off
        actor.request = actor.answers = None
        return answer, group

    def _failed(self, actor: _Actor, error: ray.exceptions.RayTaskError) -> None:
        """The actor's code raised: the process goes on, unless it could not even take weights."""
        if actor.starting:
            self._replace(actor.place, error)
            return
        assert actor.request is not None
        request = actor.request
        actor.request = actor.answers = None
        actor.num_failures += 1
        self._run_again(request, error)

    def _replace(self, place: int, error: Exception) -> None:
        """Give an actor up; another one fills its place after a while."""
        actor = self._actors.pop(place)
        ray.kill(actor.handle, no_restart=True)
        cause = describe(error)
        self._failed_starts += 1 if actor.starting else 0
        if self.faults.num_replaced >= self._limits.max_replacements or self._failed_starts >= MAX_FAILED_STARTS:
            raise WorkerError(
                f"rollout actor {place} was lost ({cause}); {self._limits.max_replacements} may be replaced "
                f"(cluster.max-replacements) and {self.faults.num_replaced} have been, and {MAX_FAILED_STARTS} starts "
                f"may fail in a row and {self._failed_starts} have"
            ) from error
        self.faults = replace(self.faults, num_replaced=self.faults.num_replaced + 1)
        self._num_recent += 1
        self._due[place] = time.monotonic() + self._limits.backoff_s(self._num_recent)
        if actor.request is not None:
            self._run_again(actor.request, error)

    def _run_again(self, request: RolloutRequest, error: Exception) -> None:
        self.faults = replace(self.faults, num_lost=self.faults.num_lost + 1)
        self._attempts[request.index] += 1
        if self._attempts[request.index] >= self._limits.max_attempts:
            raise WorkerError(
                f"group {request.index} ({request.contexts[0].task}) failed {self._limits.max_attempts} times, "
                f"the last time because of {describe(error)}"
            ) from error
        self._queue.appendleft(request)

    def _check(self, place: int, checksum: str | bool) -> None:
        if self._checksum is not None and checksum != self._checksum:
            raise WorkerError(f"rollout actor {place} holds weights {checksum}, not the learner's {self._checksum}")

    def _dispatch(self) -> None:
        idle = [actor for actor in self._actors.values() if not actor.starting and not actor.request]
        for actor in sorted(idle, key=lambda actor: actor.num_failures):  # what failed on one may run on another
            if not self._queue:
                return
            actor.request = self._queue.popleft()
            actor.answers = tuple(actor.handle.roll.options(num_returns=2).remote(actor.request))
            actor.deadline = time.monotonic() + self._limits.request_s


def _has_answered(reference: ray.ObjectRef) -> bool:
    """Whether an answer is there though `ray.wait`, which returns the first, did not name it."""
    return bool(ray.wait([reference], timeout=0)[0])


def describe(error: Exception) -> str:
    """The cause of a failure in one line, without its remote stack, which Ray's logs keep."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    in_constructor = "creation task" in lines[0]  # then a remote stack follows, and its last line is the cause
    return lines[-1] if in_constructor else lines[0]


def answer_of(reference: ray.ObjectRef, what: str, timeout_s: float) -> Any:
    """What an actor that nobody replaces answered.

    Raises:
        WorkerError: It died, raised, or did not answer in time; the message says what, and the cause.
    """
    try:
        return ray.get(reference, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise WorkerError(f"{what}: no answer within {timeout_s:g} s") from error
    except ray.exceptions.RayError as error:
        raise WorkerError(f"{what}: {describe(error)}") from error
