"""Which groups make the next batch: the first by index that pass the filter, each exactly once.

A group is launched only while accepted and pending groups together are fewer than a batch needs. So every
launched group ends up either rejected or trained, and which ones are launched depends on the verdicts
alone, not on the order in which they arrive.
"""

from collections import Counter

from ript_ray.errors import SearchExhaustedError
from ript_ray.filters import REJECTIONS, Verdict, judge
from ript_ray.types import GroupSummary


class Admission:
    """Fills one batch after the other."""

    def __init__(self, *, groups_per_update: int, max_uniform_groups: int):
        """Start with an empty batch.

        Args:
            groups_per_update: Mixed groups that make a batch.
            max_uniform_groups: Uniform groups in a row, by index, that end the search.
        """
        self._groups_per_update = groups_per_update
        self._max_uniform_groups = max_uniform_groups
        self._next_index = 0
        self._pending: set[int] = set()
        self._verdicts: dict[int, Verdict] = {}
        self._counted_to = 0
        self._streak: Counter[Verdict] = Counter()

    @property
    def next_index(self) -> int:
        """Index of the next group to launch: the position in the context stream."""
        return self._next_index

    @property
    def num_wanted(self) -> int:
        """Groups that may be launched now."""
        return self._groups_per_update - len(self._accepted) - len(self._pending)

    @property
    def complete(self) -> bool:
        """Whether the batch is full."""
        return len(self._accepted) == self._groups_per_update

    def launch(self) -> int:
        """Claim the next index."""
        index = self._next_index
        self._pending.add(index)
        self._next_index += 1
        return index

    def offer(self, summary: GroupSummary) -> Verdict:
        """Judge a group that has finished.

        Raises:
            SearchExhaustedError: It completes a row of uniform groups as long as the limit.
        """
        self._pending.remove(summary.index)
        verdict = self._verdicts[summary.index] = judge(summary.successes)
        self._count_in_order()
        return verdict

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
        while self._counted_to in self._verdicts:
            verdict = self._verdicts[self._counted_to]
            self._counted_to += 1
            if verdict is Verdict.ACCEPTED:
                self._streak.clear()
                continue
            self._streak[verdict] += 1
            if self._streak.total() >= self._max_uniform_groups:
                raise SearchExhaustedError(
                    explain_exhaustion(self._streak), is_success=not self._streak[Verdict.ALL_FAILED]
                )


def explain_exhaustion(uniform: Counter[Verdict]) -> str:
    """Say which case a search without mixed groups is, with its figures."""
    failed, solved = (uniform[verdict] for verdict in REJECTIONS)
    figures = f"{uniform.total()} groups in a row taught nothing: {solved} all solved, {failed} all failed"
    if not failed:
        return f"every context is solved ({figures})"
    if not solved:
        return f"the base policy never succeeds ({figures}); it needs better or more demonstrations"
    return f"every context is either solved or out of reach ({figures})"
