"""A pool of Ray rollout actors: one request per actor at a time, answers in the order they finish.

Why not RLlib's FaultTolerantActorManager: docs/decisions/0003-actor-pool.md.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from ript_ray.errors import WorkerError
from ript_ray.types import GroupSummary, RolloutRequest


@dataclass(frozen=True)
class _Running:
    actor: int
    request: RolloutRequest
    group: ray.ObjectRef
    deadline: float


class ActorPool:
    """Keeps every actor busy while there are requests."""

    def __init__(self, actors: Sequence[Any], *, timeout_s: float):
        """Take over started actors.

        Args:
            actors: Handles of Ray actors made from `RolloutWorker`.
            timeout_s: Longest time one request may take.
        """
        self._actors = list(actors)
        self._timeout_s = timeout_s
        self._idle = deque(range(len(self._actors)))
        self._queue: deque[RolloutRequest] = deque()
        self._running: dict[ray.ObjectRef, _Running] = {}

    @property
    def num_actors(self) -> int:
        """Actors in the pool."""
        return len(self._actors)

    def submit(self, request: RolloutRequest) -> None:
        """Hand a request to an idle actor, or queue it."""
        self._queue.append(request)
        self._dispatch()

    def next_finished(self) -> tuple[GroupSummary, ray.ObjectRef]:
        """Wait for a request to finish.

        Returns:
            Its summary, and a reference to the group, which stays where it was made.

        Raises:
            WorkerError: The actor died, its code raised, or the deadline has passed.
        """
        deadline = min(running.deadline for running in self._running.values())
        ready, _ = ray.wait(list(self._running), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            late = min(self._running.values(), key=lambda running: running.deadline)
            raise WorkerError(
                f"rollout actor {late.actor} has not finished group {late.request.index} "
                f"({late.request.contexts[0].task}) within {self._timeout_s:g} s (cluster.group-timeout-s)"
            )
        done = self._running.pop(ready[0])
        summary = answer(ready[0], f"rollout actor {done.actor}, group {done.request.index}", self._timeout_s)
        self._idle.append(done.actor)
        self._dispatch()
        return summary, done.group

    def load(self, weights: ray.ObjectRef) -> list[str]:
        """Send weights to every actor; returns the checksum that each computed over what it got."""
        loads = [actor.load.remote(weights) for actor in self._actors]
        return [
            answer(loading, f"rollout actor {actor} loading weights", self._timeout_s)
            for actor, loading in enumerate(loads)
        ]

    def kill(self) -> None:
        """End every actor."""
        for actor in self._actors:
            ray.kill(actor, no_restart=True)

    def _dispatch(self) -> None:
        while self._idle and self._queue:
            actor, request = self._idle.popleft(), self._queue.popleft()
            summary, group = self._actors[actor].roll.options(num_returns=2).remote(request)
            self._running[summary] = _Running(actor, request, group, time.monotonic() + self._timeout_s)


def answer(reference: ray.ObjectRef, what: str, timeout_s: float) -> Any:
    """What an actor answered.

    Raises:
        WorkerError: It died, raised, or did not answer in time; the message says what, and the cause
            without its remote stack, which Ray's logs keep.
    """
    try:
        return ray.get(reference, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise WorkerError(f"{what}: no answer within {timeout_s:g} s") from error
    except ray.exceptions.RayTaskError as error:
        raise WorkerError(f"{what}: {type(error.cause).__name__}: {error.cause}") from error
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines()
        in_constructor = "creation task" in lines[0]  # then a remote stack follows, and its last line is the cause
        raise WorkerError(f"{what}: {lines[-1] if in_constructor else lines[0]}") from error
