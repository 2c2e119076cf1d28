"""A runtime for training that need not roll out again what an earlier process of the run has rolled out."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from ript_ray.rl.dynamic_sampling import UNIFORM, judge
from ript_ray.rl.learner import UpdateReport
from ript_ray.rl.protocols import DispatchCounts, Rerun, Runtime, RuntimeUsage
from ript_ray.runs.kept_groups import KeptGroups, Note
from ript_ray.types import Arrays, Group, GroupSummary, RolloutRequest, Version, Weights

logger = logging.getLogger(__name__)


class RecallingRuntime:
    """Runtime for training that takes groups from `KeptGroups` instead of rolling them out again; see `Runtime`.

    A group is recalled if the weights that acted are those of this run, bit for bit, and not older than the policy lag
    allows: at lag 0 the update goes on as if the run had not been interrupted.

    Attributes:
        num_recalled: Groups recalled so far.
    """

    def __init__(self, inner: Runtime, kept: KeptGroups, *, max_policy_lag: int):
        """Recall what is kept.

        Args:
            inner: Rolls out what is not kept, and trains.
            kept: The groups; it keeps all further ones, too.
            max_policy_lag: Updates allowed between sampling a group and training on it.
        """
        self.num_recalled = 0
        self._num_requests = 0
        if num_kept := len(kept):
            logger.info("groups that an earlier process has rolled out since the checkpoint: %d", num_kept)
        self._inner = inner
        self._kept = kept
        self._max_policy_lag = max_policy_lag
        self._version = Version(0)
        self._checksums: dict[Version, str] = {}
        self._queue: deque[tuple[RolloutRequest, Note]] = deque()
        self._recalled: dict[int, tuple[RolloutRequest, Group | None]] = {}
        self._summaries: dict[int, GroupSummary] = {}

    @property
    def num_actors(self) -> int:
        """See `Runtime`."""
        return self._inner.num_actors

    @property
    def num_alive(self) -> int:
        """See `Runtime`."""
        return self._inner.num_alive

    @property
    def dispatch_counts(self) -> DispatchCounts:
        """See `Runtime`; a recalled group counts as dispatched again, though to nobody."""
        counts = self._inner.dispatch_counts
        return replace(counts, num_dispatched=counts.num_dispatched + self._num_requests)

    def launch(self, request: RolloutRequest) -> None:
        """See `Runtime`."""
        note = self._kept.note(request.index)
        if note is not None and self._may_recall(note):
            self._queue.append((request, note))
        else:
            self._inner.launch(request)

    @property
    def usage(self) -> RuntimeUsage:
        """See `Runtime`."""
        return self._inner.usage

    def roll_out(self, requests: Sequence[RolloutRequest]) -> list[GroupSummary]:
        """See `Runtime`."""
        return self._inner.roll_out(requests)

    def run_ahead(self, request_of: Callable[[int], RolloutRequest] | None, first_index: int) -> None:
        """See `Runtime`."""
        self._inner.run_ahead(request_of, first_index)

    def next_event(self) -> GroupSummary | UpdateReport:
        """See `Runtime`; recalled groups come first."""
        while self._queue:
            request, note = self._queue.popleft()
            group = self._kept.group(note) if note.is_trained else None
            if note.is_trained and group is None:
                self._inner.launch(request)
                continue
            self.num_recalled += 1
            self._num_requests += request.num_parts
            self._recalled[request.index] = request, group
            self._summaries[request.index] = note.summary
            return note.summary
        event = self._inner.next_event()
        if isinstance(event, GroupSummary):
            self._summaries[event.index] = event
        return event

    def send_to_learner(self, index: int) -> None:
        """See `Runtime`."""
        summary = self._summaries.pop(index)
        request, group = self._recalled.pop(index, (None, None))
        if request is None:
            self._inner.send_to_learner(index)
            self._save_note(summary, is_trained=True)
        else:
            assert group is not None, f"group {index} was rejected before it was recalled"
            self._inner.give(request, summary, group)

    def discard(self, index: int) -> None:
        """See `Runtime`."""
        summary = self._summaries.pop(index)
        if self._recalled.pop(index, None) is None:
            self._inner.discard(index)
            if summary.error is None and judge(summary.successes) in UNIFORM:  # others may be accepted another time
                self._save_note(summary, is_trained=False)

    def start_update(self, indices: Sequence[int]) -> Sequence[Rerun]:
        """See `Runtime`."""
        reruns = self._inner.start_update(indices)
        for rerun in reruns:
            self._save_note(rerun.trained, is_trained=True)
        return reruns

    def broadcast(self) -> Weights:
        """See `Runtime`."""
        weights = self._inner.broadcast()
        self._version = weights.version
        self._checksums[weights.version] = weights.checksum
        return weights

    def give(self, request: RolloutRequest, summary: GroupSummary, group: Group) -> None:
        """See `Runtime`."""
        self._inner.give(request, summary, group)

    def learner_state(self) -> Arrays:
        """See `Runtime`."""
        return self._inner.learner_state()

    def restore(self, version: Version, state: Arrays) -> None:
        """See `Runtime`."""
        self._inner.restore(version, state)

    def close(self) -> None:
        """See `Runtime`."""
        self._inner.close()

    def _may_recall(self, note: Note) -> bool:
        version = note.summary.version
        if not 0 <= self._version - version <= self._max_policy_lag:
            return False
        # Of versions before the one that this process began with, only the number is known: lag is above 0.
        return version < min(self._checksums) or self._checksums.get(version) == note.weights

    def _save_note(self, summary: GroupSummary, *, is_trained: bool) -> None:
        checksum = self._checksums.get(summary.version)
        if checksum is not None:  # none: rolled out for an earlier process, lost, and not repeated by this one
            self._kept.save_note(Note(summary, checksum, is_trained))
