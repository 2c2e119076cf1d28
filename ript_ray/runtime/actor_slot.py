"""One actor slot: its current process and its pending call."""

from dataclasses import dataclass
from typing import Any

import ray

from ript_ray.types import RolloutRequest, Version


@dataclass(frozen=True)
class Starting:
    """The actor's constructor is running."""

    reference: ray.ObjectRef


@dataclass(frozen=True)
class LoadingWeights:
    """The actor is loading weights."""

    reference: ray.ObjectRef
    checksum: str
    version: Version


@dataclass(frozen=True)
class RollingOut:
    """The actor is running a request; `request` is none once another copy of it has finished."""

    reference: ray.ObjectRef
    group: ray.ObjectRef
    request: RolloutRequest | None
    started: float


@dataclass(eq=False)
class ActorSlot:
    """One slot of the pool and the actor process in it, which runs one call at a time.

    Attributes:
        slot: Number of the slot, from 0; a replacement keeps it.
        order: Number of actors that the pool had started before this one.
        handle: Ray's handle of the actor.
        call: The pending call, or none if the actor is idle.
        deadline: When the pending call times out, by `time.monotonic`.
        version: Version of the weights it holds, none before the first load.
        node: Id of its node, none before it has started.
        processor: Kind of its processor; see `processor_kind`.
        num_failures: Consecutive requests in which its code raised.
        num_invalid: Consecutive malformed groups it returned.
    """

    slot: int
    order: int
    handle: Any
    call: Starting | LoadingWeights | RollingOut | None
    deadline: float
    version: Version | None = None
    node: str | None = None
    processor: str = ""
    num_failures: int = 0
    num_invalid: int = 0

    @property
    def request(self) -> RolloutRequest | None:
        """The running request, if its answer is still needed."""
        return self.call.request if isinstance(self.call, RollingOut) else None
