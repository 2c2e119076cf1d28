"""One place in the pool of rollout actors: the process that fills it, and the one thing that it does now."""

from dataclasses import dataclass
from typing import Any

import ray

from ript_ray.types import RolloutRequest, Version


@dataclass(frozen=True)
class Starting:
    """The actor's constructor runs."""

    reference: ray.ObjectRef


@dataclass(frozen=True)
class LoadingWeights:
    """The actor takes weights."""

    reference: ray.ObjectRef
    checksum: str
    version: Version


@dataclass(frozen=True)
class RollingOut:
    """The actor runs a request; `request` is none once another copy of it has answered."""

    reference: ray.ObjectRef
    group: ray.ObjectRef
    request: RolloutRequest | None
    started: float


@dataclass
class ActorSlot:
    """One place in the pool and the process that fills it now. It does one thing at a time.

    Attributes:
        version: Of the weights it holds, none before it has taken any.
        num_failures: Requests in a row at which its code raised.
        num_invalid: Malformed groups in a row that it has made.
    """

    slot: int
    handle: Any
    call: Starting | LoadingWeights | RollingOut | None
    deadline: float
    version: Version | None = None
    num_failures: int = 0
    num_invalid: int = 0

    @property
    def request(self) -> RolloutRequest | None:
        """What it works on, if its answer is still wanted."""
        return self.call.request if isinstance(self.call, RollingOut) else None
