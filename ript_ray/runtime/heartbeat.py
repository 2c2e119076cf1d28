"""Signs of life of long phases: how far they are, and how long they will take."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

HEARTBEAT_S = 20.0
"""Interval between two signs of life, in seconds."""

Item = TypeVar("Item")

logger = logging.getLogger(__name__)


class Heartbeat:
    """Logs the progress of a phase from time to time; of a phase shorter than the interval, nothing."""

    def __init__(self, what: str, total: int, *, interval_s: float = HEARTBEAT_S):
        """Start the clock.

        Args:
            what: What is being done, and to what, e.g. "evaluating, rollouts".
            total: The number of them.
            interval_s: Interval between two lines, in seconds.
        """
        self._what = what
        self._total = total
        self._interval_s = interval_s
        self._started = self._last = time.monotonic()

    def beat(self, num_done: int) -> None:
        """Log that so many are done, if it is time to."""
        now = time.monotonic()
        if now - self._last < self._interval_s:
            return
        self._last = now
        left = in_minutes((now - self._started) / num_done * (self._total - num_done)) if num_done else "unknown time"
        logger.info("%s: %d of %d done, %s left", self._what, num_done, self._total, left)


def with_heartbeat(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """Return the items one by one; logs how many are done."""
    heartbeat = Heartbeat(what, total)
    for num_done, item in enumerate(items):
        heartbeat.beat(num_done)
        yield item


def in_minutes(seconds: float) -> str:
    """Return a duration in words: minutes and seconds, or hours and minutes."""
    if seconds >= 7200:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"
    return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
