"""Buffer of rollout groups: which groups form the next batch, and how many more may be launched.

Groups are launched only while fewer than (lag + 1) batches of them are in flight (running, waiting or in training),
and batches are cut in index order, so no group overtakes another. Hence no group is older than `max_policy_lag`
when it is trained (proof: docs/bounded_staleness.md). At lag 0, which groups are launched depends on the verdicts
alone, not on the order of arrival.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from enum import Enum

from ript_ray.config.rl import Sampling
from ript_ray.errors import SearchExhaustedError
from ript_ray.rl.dynamic_sampling import UNIFORM, Verdict, judge, trained_verdicts
from ript_ray.types import GroupSummary, Layout, Progress

_State = Enum("_State", "RUNNING WAITING TRAINING REJECTED")


@dataclass
class _Group:
    """One launched group. Its entry is deleted once trained, or once rejected and counted in the streak."""

    state: _State = _State.RUNNING
    verdict: Verdict | None = None
    version: int = 0


class GroupBuffer:
    """Batches of the first groups by index that are not rejected, each trained exactly once."""

    def __init__(self, sampling: Sampling, *, num_updates: int, start: Progress | None = None):
        """Start with an empty batch (Algorithm 1, line 4).

        Args:
            sampling: Sizes and limits.
            num_updates: Updates of the whole run; no group is launched that none of them needs.
            start: Progress to resume from.
        """
        start = start or Progress()
        self.update = start.update
        self.num_trained = 0
        self.num_rejected: Counter[Verdict] = Counter()
        self._sampling = sampling
        self._num_updates = num_updates
        self._trained_verdicts = trained_verdicts(dynamic=sampling.dynamic)
        self._groups: dict[int, _Group] = {}  # in index order, because they are launched in it
        self._first_index = self._next_index = self._judged_to = start.next_index
        self._batch_first = start.next_index  # first index of the batch that is being collected
        self._streak: Counter[Verdict] = Counter()
        self._layout: Layout | None = None

    @property
    def num_waiting(self) -> int:
        """Groups of a batch that are not trained yet, including those in training."""
        return len(self._indices(_State.WAITING, _State.TRAINING))

    @property
    def num_uniform_in_training(self) -> int:
        """Uniform groups of the batch in training; 0 with dynamic sampling."""
        return sum(self._groups[index].verdict in UNIFORM for index in self._indices(_State.TRAINING))

    @property
    def num_wanted(self) -> int:
        """Groups that may be launched now; 0 once the search is exhausted."""
        if self.exhausted:
            return 0
        num_batches = min(self._sampling.max_policy_lag + 1, self._num_updates - self.update)
        capacity = num_batches * self._sampling.groups_per_update
        in_flight = self._next_index - self._first_index - self.num_trained - self.num_rejected.total()
        # Rejected groups free capacity while a straggler pauses the streak: unbounded, the search never ends.
        ahead = self._next_index - self._judged_to
        wanted = min(capacity - in_flight, capacity + self._sampling.max_uniform_groups - ahead)
        if self._sampling.max_groups_per_update is None:
            return wanted
        num_collecting = num_batches - bool(self._indices(_State.TRAINING))
        return min(wanted, self._budget_end(num_collecting) - self._next_index)

    @property
    def next_index(self) -> int:
        """Index that is launched next."""
        return self._next_index

    @property
    def is_searching(self) -> bool:
        """Whether groups are running that may be rejected, so that others are launched in their place."""
        return not self.exhausted and bool(self._indices(_State.RUNNING))

    @property
    def ready(self) -> bool:
        """Whether a batch is full (Algorithm 1, line 5), every earlier group judged and no other batch in training.

        Where the search for more groups has ended, a batch of `min_batch_share` will do.
        """
        has_ended = self._streak_is_too_long and not self._indices(_State.RUNNING)
        size, is_complete = len(self._next_batch()), self._budget_is_used or has_ended
        is_enough = size >= (self._sampling.min_groups_per_update if is_complete else self._sampling.groups_per_update)
        return is_enough and not self._indices(_State.TRAINING)

    @property
    def exhausted(self) -> bool:
        """Whether rejected groups in a row, by index, have reached the limit, or a batch has too few in its budget."""
        if self._budget_is_used and len(self._next_batch()) < self._sampling.min_groups_per_update:
            return True
        return self._streak_is_too_long

    @property
    def _streak_is_too_long(self) -> bool:
        return self._streak.total() >= self._sampling.max_uniform_groups

    @property
    def _budget_is_used(self) -> bool:
        return self._judged_to >= self._budget_end(1)

    @property
    def at_end(self) -> bool:
        """Whether the search is exhausted, nothing is running or in training, and no full batch is left."""
        return self.exhausted and not self._indices(_State.RUNNING, _State.TRAINING) and not self.ready

    def launch(self) -> int:
        """Claim the next index."""
        self._groups[self._next_index] = _Group()
        self._next_index += 1
        return self._next_index - 1

    def offer(self, summary: GroupSummary) -> Verdict:
        """Judge a finished group (Algorithm 1, lines 11 to 14)."""
        assert self._groups[summary.index].state is _State.RUNNING, f"group {summary.index} finished twice"
        verdict = self._judge(summary)
        if not self.trains(verdict):
            self.num_rejected[verdict] += 1
        state = _State.WAITING if self.trains(verdict) else _State.REJECTED
        self._groups[summary.index] = _Group(state, verdict, summary.version)
        self._count_in_order()
        return verdict

    def trains(self, verdict: Verdict) -> bool:
        """Return whether groups with this verdict enter the batch."""
        return verdict in self._trained_verdicts

    def take_batch(self) -> list[int]:
        """Return the indices of the batch, ascending; it is in training until `finish_update`."""
        assert self.ready
        batch = self._next_batch()
        is_full = len(batch) == self._sampling.groups_per_update
        self._batch_first = batch[-1] + 1 if is_full else min(self._judged_to, self._budget_end(1))
        for index in batch:
            group = self._groups[index]
            group.state, age = _State.TRAINING, self.update - group.version
            assert age <= self._sampling.max_policy_lag, (
                f"group {index} is {age} updates old, limit {self._sampling.max_policy_lag}"
            )
        return batch

    def replace(self, summary: GroupSummary) -> Verdict:
        """Judge the new result of a group in training; it is trained even if it is uniform."""
        group = self._groups[summary.index]
        assert group.state is _State.TRAINING
        group.verdict, group.version = judge(summary.successes), summary.version
        return group.verdict

    def finish_update(self) -> int:
        """Count the batch in training as trained; returns the first index after it."""
        trained = self._indices(_State.TRAINING)
        assert trained
        for index in trained:
            del self._groups[index]
        self.num_trained += len(trained)
        self.update += 1
        return self._batch_first

    def explain_exhaustion(self) -> SearchExhaustedError:
        """Return the error that says why no mixed group was found, with the counts."""
        sampling = self._sampling
        if not self._streak_is_too_long:
            return SearchExhaustedError(
                f"{len(self._next_batch())} of the {sampling.max_groups_per_update} groups of an update were "
                f"mixed (sampling.max-groups-per-update), and a batch needs at least "
                f"{sampling.min_groups_per_update} of {sampling.groups_per_update} (sampling.min-batch-share)",
                is_success=False,
            )
        failed, solved = (self._streak[verdict] for verdict in UNIFORM)
        unusable = self._streak.total() - failed - solved
        counts = f"{self._streak.total()} groups in a row taught nothing: {solved} all solved, {failed} all failed"
        if unusable:
            message = f"no usable groups ({counts}, {unusable} invalid or stale)"
        elif not failed:
            message = f"every context drawn is solved ({counts})"
        elif not solved:
            message = f"the policy never succeeds ({counts}); it needs better or more demonstrations"
        else:
            message = f"every context drawn is either solved or out of reach ({counts})"
        return SearchExhaustedError(message, is_success=not unusable and not failed)

    def _judge(self, summary: GroupSummary) -> Verdict:
        assert summary.version <= self.update, f"group {summary.index} is from the future: {summary.version}"
        if summary.error:
            return Verdict.INVALID
        if self.update - summary.version > self._sampling.max_policy_lag:
            return Verdict.STALE
        verdict = judge(summary.successes)
        if self.trains(verdict):
            self._layout = self._layout or summary.layout
            if summary.layout != self._layout:
                return Verdict.INVALID
        return verdict

    def _indices(self, *states: _State) -> list[int]:
        return [index for index, group in self._groups.items() if group.state in states]

    def _next_batch(self) -> list[int]:
        """Return the first waiting groups, up to a batch; none past a running one, or short episodes are favored."""
        end = min(self._judged_to, self._budget_end(1))
        return [index for index in self._indices(_State.WAITING) if index < end][: self._sampling.groups_per_update]

    def _budget_end(self, num_batches: int) -> int:
        """First index that cannot be in the next `num_batches` batches."""
        limit = self._sampling.max_groups_per_update
        return sys.maxsize if limit is None else self._batch_first + num_batches * limit

    def _count_in_order(self) -> None:
        """Count verdicts by index, not by arrival, so that the search ends at the same group in every run."""
        while not self._streak_is_too_long and (group := self._groups.get(self._judged_to)) and group.verdict:
            if self.trains(group.verdict):
                self._streak.clear()
            else:
                self._streak[group.verdict] += 1
                del self._groups[self._judged_to]
            self._judged_to += 1
