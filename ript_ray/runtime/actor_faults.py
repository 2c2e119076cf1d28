"""Failures of rollout actors: when one is replaced, and when there are too many of them."""

import logging
import time
from collections import Counter

import ray

from ript_ray.errors import WorkerError
from ript_ray.runtime.actor_slot import ActorSlot
from ript_ray.runtime.limits import Limits, RecentFaults
from ript_ray.runtime.ray_calls import describe, live_node_ids, lost_its_node, was_killed

ROOM_RETRY_S = 30.0
"""Backoff before an actor is started again that found no room in time, in seconds."""

logger = logging.getLogger(__name__)


class ActorFaults:
    """Counts the failures of a pool's actors against their limits."""

    def __init__(self, limits: Limits):
        """Begin with none."""
        self._limits = limits
        self._recent = RecentFaults(limits.replacement_period_s)
        self._failed_starts = 0  # in a row, without those of actors that were killed
        self._killed_starts = 0  # since an actor has started
        self._deaths: Counter[int] = Counter()  # of each slot, since its last finished request

    def note_start(self) -> None:
        """Take note of an actor that has started."""
        self._failed_starts = self._killed_starts = 0

    def note_result(self, slot: int) -> None:
        """Take note of a request that a slot has finished: it works again."""
        self._deaths.pop(slot, None)

    def add(
        self, actor: ActorSlot, error: Exception, *, is_start: bool, num_actors: int, is_extra: bool
    ) -> tuple[float, bool]:
        """Count a failure of an actor, unless its node explains it.

        Args:
            actor: The actor.
            error: Why it failed.
            is_start: Whether it failed while it started.
            num_actors: Number of slots.
            is_extra: Whether others work, and nobody asked for this one by number: it may have to wait for other jobs.

        Returns:
            The backoff before its slot is refilled, in seconds, and whether its node can be ruled out as the cause.

        Raises:
            WorkerError: A limit is reached.
        """
        if actor.is_leaving or lost_its_node(error, actor.node):
            logger.warning("rollout actor %d is lost with its node; replacing it", actor.slot)
            return 0.0, False  # as capacity allows
        if is_extra and is_start and isinstance(error, TimeoutError):
            text = "rollout actor %d has not started (%s): other jobs may use its node; trying again in %g s"
            logger.warning(text, actor.slot, describe(error), ROOM_RETRY_S)
            return ROOM_RETRY_S, False
        limits, now = self._limits, time.monotonic()
        is_certain = not isinstance(error, ray.exceptions.ActorUnavailableError)  # so begins the death of a node
        num_recent = self._recent.count(now, live_node_ids())
        self._failed_starts += is_start and is_certain and not was_killed(error)
        self._killed_starts += is_start and is_certain and was_killed(error)
        max_failed, max_killed = max(limits.max_failed_starts, num_actors), max(limits.max_killed_starts, num_actors)
        starts_failed = self._failed_starts >= max_failed or self._killed_starts >= max_killed
        if num_recent + is_certain > limits.max_replacements or starts_failed:
            raise WorkerError(
                f"rollout actor {actor.slot} failed ({describe(error)}) and is not replaced: "
                f"{num_recent} of at most {limits.max_replacements} actors have been replaced within "
                f"{limits.replacement_period_s:g} s (cluster.max-replacements), {self._failed_starts} of at most "
                f"{max_failed} consecutive starts have failed, {self._killed_starts} of at most "
                f"{max_killed} actors were killed while they started"
            ) from error
        self._recent.add(now, actor.node, is_certain=is_certain)
        self._deaths[actor.slot] += is_certain
        backoff_s = limits.backoff_s(self._deaths[actor.slot])
        logger.warning(
            "rollout actor %d failed (%s); replacing it in %g s, replacement %d of at most %d within %g s",
            actor.slot,
            describe(error),
            backoff_s,
            num_recent + is_certain,
            limits.max_replacements,
            limits.replacement_period_s,
        )
        return backoff_s, is_certain
