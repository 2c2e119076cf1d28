"""One actor slot: its current process and its pending calls."""

import time
from dataclasses import dataclass, field
from typing import Any

import ray

from ript_ray.types import RolloutRequest, Version


@dataclass(eq=False)
class Call:
    """A call that an actor has not answered.

    Attributes:
        actor: The actor.
        reference: Ray's reference to the answer.
        timeout_s: Longest time until the answer, in seconds.
        started: When it was made, by `time.monotonic`.
    """

    actor: "ActorSlot"
    reference: ray.ObjectRef
    timeout_s: float
    started: float = field(default_factory=time.monotonic)

    @property
    def deadline(self) -> float:
        """When the call times out, by `time.monotonic`."""
        return self.started + self.timeout_s

    @property
    def is_pending(self) -> bool:
        """Whether its answer is still waited for."""
        return self in self.actor.calls


class Starting(Call):
    """The actor's constructor is running."""


@dataclass(eq=False, kw_only=True)
class LoadingWeights(Call):
    """The actor is loading weights."""

    checksum: str
    version: Version


@dataclass(eq=False, kw_only=True)
class RollingOut(Call):
    """The actor is running a request; `request` is none once it, or another copy of it, has finished."""

    group: ray.ObjectRef
    request: RolloutRequest | None


@dataclass(eq=False)
class ActorSlot:
    """One slot of the pool and the actor process in it, which starts, loads weights, or rolls out groups in turns.

    Attributes:
        slot: Number of the slot, from 0; a replacement keeps it.
        order: Number of actors that the pool had started before this one.
        handle: Ray's handle of the actor.
        calls: The pending calls.
        version: Version of the weights it holds, none before the first load.
        node: Id of its node, none before it has started.
        processor: Kind of its processor; see `processor_kind`.
        is_leaving: Whether its node is about to leave: it finishes its calls and gets no others.
        num_failures: Consecutive requests in which its code raised.
        num_invalid: Consecutive malformed groups it returned.
    """

    slot: int
    order: int
    handle: Any
    calls: list[Call] = field(default_factory=list)
    version: Version | None = None
    node: str | None = None
    processor: str = ""
    is_leaving: bool = False
    num_failures: int = 0
    num_invalid: int = 0
