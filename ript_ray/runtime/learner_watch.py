"""Watches the learners during an update: which of them hangs, and how long the update will take."""

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from ript_ray.rl.learner import UpdateProgress
from ript_ray.runtime.ray_calls import is_ready

PROGRESS = "progress"
"""Concurrency group of a learner that answers while an update runs."""

CHECK_S = 1.0
"""Longest interval between two questions to a learner, in seconds."""

ESTIMATE_AFTER_S = 10.0
"""The duration of an update is estimated once it has taken this long, in seconds."""

logger = logging.getLogger(__name__)


@dataclass
class _Seen:
    """What is known of one learner: when it last made progress, and when it was last asked."""

    moved: float
    asked: float = 0.0
    answer: ray.ObjectRef | None = None
    progress: UpdateProgress = field(default_factory=UpdateProgress)


class LearnerWatch:
    """Asks every learner of one update for its progress, again and again.

    A learner hangs if it answers no more, or finishes no pass of the policy within the timeout. One that waits for the
    gradients of others has twice the time, so that the one that it waits for is found first.
    """

    def __init__(self, learners: Sequence[Any], update: int, timeout_s: float):
        """Begin with the update.

        Args:
            learners: The learners by rank, as Ray actors.
            update: Number of the update, for the log.
            timeout_s: Longest time without progress.
        """
        self._learners = learners
        self._update = update
        self._timeout_s = timeout_s
        self._started = time.monotonic()
        self._seen = [_Seen(self._started) for _ in learners]
        self._is_estimated = False

    def find_hung(self, ranks: Collection[int]) -> str | None:
        """Return which of the learners `ranks` hang, and since when; None if none does."""
        return "; ".join(reason for rank in ranks if (reason := self._check(rank))) or None

    def _check(self, rank: int) -> str | None:
        seen, now = self._seen[rank], time.monotonic()
        if seen.answer is None:
            if now - seen.asked >= min(CHECK_S, self._timeout_s / 4):
                seen.asked = now
                seen.answer = self._learners[rank].progress.options(concurrency_group=PROGRESS).remote()
            return None
        if not is_ready(seen.answer):
            is_silent = now - seen.asked > self._timeout_s
            return f"learner {rank} has not answered for {now - seen.asked:.0f} s" if is_silent else None
        answer, seen.answer = seen.answer, None
        try:
            progress = ray.get(answer, timeout=self._timeout_s)
        except ray.exceptions.RayError:
            return None  # it died: its update says so, too
        if progress.num_passes > seen.progress.num_passes:
            seen.moved = now
        seen.progress = progress
        self._estimate(progress, seen.asked - self._started)
        stalled_s = seen.asked - seen.moved  # not until now: the driver itself may have been busy
        if stalled_s <= self._timeout_s * (2 if progress.is_waiting else 1):
            return None
        taken = f"after {progress.num_steps} of {progress.total_steps} optimizer steps"
        return f"learner {rank} has made no progress for {stalled_s:.0f} s, {taken}"

    def _estimate(self, progress: UpdateProgress, elapsed_s: float) -> None:
        if self._is_estimated or elapsed_s < ESTIMATE_AFTER_S or not progress.num_steps:
            return
        self._is_estimated = True
        steps, all_steps = progress.num_steps, progress.total_steps
        minutes = elapsed_s / steps * all_steps / 60
        text = "update %d: %d of %d optimizer steps took %.0f s, so learning takes about %.1f min per update"
        logger.info(text, self._update, steps, all_steps, elapsed_s, minutes)
