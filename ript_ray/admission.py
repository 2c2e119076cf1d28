"""Which groups make the next batch: the first by index that pass the filter, each exactly once.

A group is launched only while accepted and pending groups together are fewer than a batch needs. So every
launched group ends up either rejected or trained, and which ones are launched depends on the verdicts
alone, not on the order in which they arrive.
"""

from collections import Counter

from ript_ray.errors import SearchExhaustedError
from ript_ray.filters import Verdict, judge
from ript_ray.types import GroupSummary, Progress


class Admission:
    """Fills one batch after the other."""

    def __init__(self, *, groups_per_update: int, max_uniform_groups: int, start: Progress | None = None):
        """Start with an empty batch.

        Args:
            groups_per_update: Mixed groups that make a batch.
            max_uniform_groups: Uniform groups in a row, by index, that end the search.
            start: Where an earlier admission stood, to go on from there.
        """
        start = start or Progress()
        self._groups_per_update = groups_per_update
        self._max_uniform_groups = max_uniform_groups
        self._next_index = start.next_index
        self._pending: set[int] = set()
        self._verdicts: dict[int, Verdict] = {}
        self._counted_to = start.next_index
        self._streak = Counter({Verdict(name): count for name, count in start.uniform_streak.items()})

    @property
    def num_wanted(self) -> int:
        """Groups that may be launched now; none once the search is exhausted."""
        if self.exhausted:
            return 0
        return self._groups_per_update - len(self._accepted) - len(self._pending)

    @property
    def num_pending(self) -> int:
        """Groups launched and not yet judged."""
        return len(self._pending)

    @property
    def complete(self) -> bool:
        """Whether the batch is full."""
        return len(self._accepted) == self._groups_per_update and not self.exhausted

    @property
    def exhausted(self) -> bool:
        """Whether uniform groups in a row, by index, have reached the limit."""
        return self._streak.total() >= self._max_uniform_groups

    def progress(self, update: int) -> Progress:
        """Where things stand after `update` updates; nothing may be pending."""
        assert not self._pending
        return Progress(update, self._next_index, {str(verdict): count for verdict, count in self._streak.items()})

    def launch(self) -> int:
        """Claim the next index."""
        index = self._next_index
        self._pending.add(index)
        self._next_index += 1
        return index

    def offer(self, summary: GroupSummary) -> Verdict:
        """Judge a group that has finished."""
        self._pending.remove(summary.index)
        verdict = self._verdicts[summary.index] = judge(summary.successes)
        self._count_in_order()
        return verdict

    def explain_exhaustion(self) -> SearchExhaustedError:
        """Which case a search without mixed groups is, with its figures."""
        failed, solved = (self._streak[verdict] for verdict in (Verdict.ALL_FAILED, Verdict.ALL_SOLVED))
        figures = f"{failed + solved} groups in a row taught nothing: {solved} all solved, {failed} all failed"
        if not failed:
            return SearchExhaustedError(f"every context drawn is solved ({figures})", is_success=True)
        if not solved:
            message = f"the policy never succeeds ({figures}); it needs better or more demonstrations"
            return SearchExhaustedError(message, is_success=False)
        message = f"every context drawn is either solved or out of reach ({figures})"
        return SearchExhaustedError(message, is_success=False)

    def take_batch(self) -> list[int]:
        """Indices of the full batch, ascending; the next batch starts empty."""
        assert self.complete
        assert not self._pending, "every launched group is judged before its batch is full"
        batch = self._accepted
        self._verdicts.clear()
        return batch

    @property
    def _accepted(self) -> list[int]:
        return sorted(index for index, verdict in self._verdicts.items() if verdict is Verdict.ACCEPTED)

    def _count_in_order(self) -> None:
        """Follow the verdicts by index, so that the search ends at the same group in every run."""
        while self._counted_to in self._verdicts and not self.exhausted:
            verdict = self._verdicts[self._counted_to]
            self._counted_to += 1
            if verdict is Verdict.ACCEPTED:
                self._streak.clear()
            else:
                self._streak[verdict] += 1
