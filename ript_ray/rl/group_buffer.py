"""Which groups make the next batch: the first by index that teach anything, each exactly once.

Groups are launched only while those in flight (running, waiting, or being learned from) are fewer than
(lag + 1) batches, and batches are cut in the order of indices, so that no group overtakes another. Then no
group is older than `max_policy_lag` when it is trained (docs/bounded_staleness.md has the proof); at lag 0
which groups are launched depends on the verdicts alone, not on the order in which they arrive.
"""

from collections import Counter

from ript_ray.errors import SearchExhaustedError
from ript_ray.rl.dynamic_sampling import UNIFORM, Verdict, judge
from ript_ray.types import GroupSummary, Layout, Progress


class GroupBuffer:
    """Fills one batch after the other."""

    def __init__(
        self,
        *,
        groups_per_update: int,
        max_uniform_groups: int,
        num_updates: int,
        max_policy_lag: int = 0,
        start: Progress | None = None,
    ):
        """Start with an empty batch.

        Args:
            groups_per_update: Mixed groups that make a batch.
            max_uniform_groups: Useless groups in a row, by index, that end the search.
            num_updates: Updates that the run makes in all; nothing is launched that none of them needs.
            max_policy_lag: Updates that may pass between a group's launch and the update that trains it.
            start: Where an earlier admission stood, to go on from there.
        """
        start = start or Progress()
        self.update = start.update
        self.num_trained = 0
        self.num_rejected: Counter[Verdict] = Counter()
        self._groups_per_update = groups_per_update
        self._max_uniform_groups = max_uniform_groups
        self._num_updates = num_updates
        self._max_policy_lag = max_policy_lag
        self._next_index = start.next_index
        self._pending: set[int] = set()
        self._judged: dict[int, Verdict] = {}
        self._judged_to = start.next_index
        self._accepted: dict[int, int] = {}
        self._training: list[int] = []
        self._streak: Counter[Verdict] = Counter()
        self._layout: Layout | None = None

    @property
    def num_waiting(self) -> int:
        """Groups accepted and not yet trained, those being learned from included."""
        return len(self._accepted) + len(self._training)

    @property
    def num_wanted(self) -> int:
        """Groups that may be launched now; none once the search is exhausted."""
        if self.exhausted:
            return 0
        batches = min(self._max_policy_lag + 1, self._num_updates - self.update)
        most = batches * self._groups_per_update
        ahead = self._next_index - self._judged_to  # a search past a late group must end, too
        return min(most - self.num_waiting - len(self._pending), most + self._max_uniform_groups - ahead)

    @property
    def ready(self) -> bool:
        """Whether a batch can be taken: enough groups accepted, every earlier one judged, the learner free."""
        return len(self._first_accepted()) == self._groups_per_update and not self._training

    @property
    def exhausted(self) -> bool:
        """Whether useless groups in a row, by index, have reached the limit."""
        return self._streak.total() >= self._max_uniform_groups

    @property
    def at_end(self) -> bool:
        """Whether the search is exhausted, nothing is in flight any more, and no batch is left to learn from."""
        return self.exhausted and not self._pending and not self._training and not self.ready

    def launch(self) -> int:
        """Claim the next index."""
        index = self._next_index
        self._pending.add(index)
        self._next_index += 1
        return index

    def offer(self, summary: GroupSummary) -> Verdict:
        """Judge a group that has finished."""
        self._pending.remove(summary.index)
        verdict = self._judged[summary.index] = self._judge(summary)
        if verdict is Verdict.ACCEPTED:
            self._accepted[summary.index] = summary.version
        else:
            self.num_rejected[verdict] += 1
        self._count_in_order()
        return verdict

    def take_batch(self) -> list[int]:
        """Indices of the batch, ascending; it is in training until `finish_update`."""
        assert self.ready
        self._training = self._first_accepted()
        ages = [self.update - self._accepted.pop(index) for index in self._training]
        assert max(ages) <= self._max_policy_lag, (
            f"a group of {max(ages)} updates ago, where {self._max_policy_lag} may"
        )
        return self._training

    def finish_update(self) -> int:
        """Book the batch in training as trained; returns the first index behind it."""
        assert self._training
        behind = self._training[-1] + 1
        self.num_trained += len(self._training)
        self._training = []
        self.update += 1
        return behind

    def explain_exhaustion(self) -> SearchExhaustedError:
        """Which case a search without mixed groups is, with its figures."""
        failed, solved = (self._streak[verdict] for verdict in UNIFORM)
        unusable = self._streak.total() - failed - solved
        figures = f"{self._streak.total()} groups in a row taught nothing: {solved} all solved, {failed} all failed"
        if unusable:
            message = f"no usable groups ({figures}, {unusable} invalid or stale)"
            return SearchExhaustedError(message, is_success=False)
        if not failed:
            return SearchExhaustedError(f"every context drawn is solved ({figures})", is_success=True)
        if not solved:
            message = f"the policy never succeeds ({figures}); it needs better or more demonstrations"
            return SearchExhaustedError(message, is_success=False)
        message = f"every context drawn is either solved or out of reach ({figures})"
        return SearchExhaustedError(message, is_success=False)

    def _judge(self, summary: GroupSummary) -> Verdict:
        assert summary.version <= self.update, f"group {summary.index} is from the future: {summary.version}"
        if summary.error:
            return Verdict.INVALID
        if self.update - summary.version > self._max_policy_lag:
            return Verdict.STALE
        verdict = judge(summary.successes)
        if verdict is Verdict.ACCEPTED:
            self._layout = self._layout or summary.layout
            if summary.layout != self._layout:
                return Verdict.INVALID
        return verdict

    def _first_accepted(self) -> list[int]:
        """The first accepted groups by index, up to a batch, among those with no unjudged group before them."""
        return sorted(index for index in self._accepted if index < self._judged_to)[: self._groups_per_update]

    def _count_in_order(self) -> None:
        """Follow the verdicts by index, so that the search ends at the same group in every run."""
        while self._judged_to in self._judged and not self.exhausted:
            verdict = self._judged.pop(self._judged_to)
            self._judged_to += 1
            if verdict is Verdict.ACCEPTED:
                self._streak.clear()
            else:
                self._streak[verdict] += 1
