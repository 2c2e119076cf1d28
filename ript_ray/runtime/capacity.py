"""Cluster capacity for rollout actors, with shortage warnings."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from ript_ray.errors import WorkerError

CHECK_S = 0.5
"""Interval between two looks at the cluster's nodes, in seconds."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Room:
    """What the live nodes offer.

    Attributes:
        num_actors: Total number of actors that fit on the nodes that stay.
        leaving: Ids of the nodes that are about to leave.
    """

    num_actors: int
    leaving: frozenset[str] = frozenset()


class ActorCapacity:
    """Tells how many actors there should be and fit on the nodes; logs every shortage and every change of it."""

    def __init__(self, look: Callable[[], Room], num_asked: int | None, *, timeout_s: float):
        """Store the arguments; `look` is first called by the method of this name.

        Args:
            look: Returns what the live nodes offer now.
            num_asked: Actors requested; by default as many as fit at any time.
            timeout_s: Longest time without any actor, in seconds.
        """
        self._look = look
        self._num_asked = num_asked
        self._timeout_s = timeout_s
        self._room = Room(0)
        self._next_look = 0.0
        self._empty_since: float | None = None
        self._last_message = ""

    @property
    def num_wanted(self) -> int:
        """Number of actors that there should be now."""
        return self._room.num_actors if self._num_asked is None else self._num_asked

    @property
    def follows_nodes(self) -> bool:
        """Whether there are as many actors as fit, rather than a number that was asked for."""
        return self._num_asked is None

    def look(self) -> Room | None:
        """Return what the nodes offer, or none if it is too early to look again."""
        now = time.monotonic()
        if now < self._next_look:
            return None
        is_first, self._next_look = self._next_look == 0.0, now + CHECK_S
        before, self._room = self._room.num_actors, self._look()
        if self._num_asked is None and self._room.num_actors != before and not is_first:
            logger.info("rollout actors: %d now fit on the nodes, before %d", self._room.num_actors, before)
        return self._room

    def free(self, num_actors: int, num_due: int) -> int:
        """Return how many of the `num_due` empty slots can be filled now, by what the nodes offered at the last look.

        Negative if there are more actors than capacity: that many of the starting ones will never start.

        Raises:
            WorkerError: There has been neither an actor nor capacity for one for `timeout_s`.
        """
        free = self._room.num_actors - num_actors
        self._log_shortage(missing=num_due - free)
        self._check_timeout(self._room.num_actors + num_actors)
        return min(free, num_due)

    def _log_shortage(self, missing: int) -> None:
        text = ""
        if missing > 0 and self._num_asked is not None:
            text = (
                f"rollout actors: asked for {self._num_asked}, got {self._num_asked - missing}, waiting for "
                f"{missing}; the live nodes have capacity for {self._room.num_actors}"
            )
        if text and text != self._last_message:
            logger.warning(text)
        elif self._last_message and not text:
            logger.info("rollout actors: asked for %d, got all", self._num_asked)
        self._last_message = text

    def _check_timeout(self, num_possible: int) -> None:
        now = time.monotonic()
        if num_possible:
            self._empty_since = None
            return
        waiting = "there is no rollout actor, and no live node has capacity for one"
        if self._empty_since is None:
            self._empty_since = now
            limit = f"for at most {self._timeout_s:g} s (cluster.node-timeout-s)"
            logger.warning("%s: waiting for a node to join, %s", waiting, limit)
        if now - self._empty_since > self._timeout_s:
            problem = self._last_message or waiting
            raise WorkerError(
                f"{problem}; none became available within {self._timeout_s:g} s (cluster.node-timeout-s); each takes "
                "cluster.cpus-per-actor and cluster.gpus-per-actor of one node"
            )
