"""Groups that a killed process has rolled out are not rolled out again, and the update ends with the same bits."""

import contextlib
import functools
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ript_ray.rl.callbacks import RolloutStats, UpdateRecord
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.learner import UpdateReport
from ript_ray.rl.parts import join_groups
from ript_ray.rl.protocols import DispatchCounts
from ript_ray.rl.rollout_worker import summarize
from ript_ray.rl.train import train
from ript_ray.rl.weights import apply
from ript_ray.runs.kept_groups import KeptGroups, KeptGroupsCleaner, Note
from ript_ray.runs.recalling_runtime import RecallingRuntime
from ript_ray.runtime.serial import SerialRuntime
from ript_ray.types import Group, GroupSummary, Progress, RolloutRequest, Version
from tests.conftest import line_parts, line_stream
from tests.disk import full_disk
from tests.ript_ray.runtime.test_runtimes import POLICIES, SAMPLING, Log, checksums, train_on

NUM_UPDATES = 4


class Killed(BaseException):
    """The process ends here."""


class DiesAt(Log):
    """Ends the process after some groups of an update."""

    def __init__(self, update: int, num_groups: int):
        super().__init__()
        self._end = (update, num_groups)

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        super().on_group(stats, summary, verdict)
        if (stats.update, stats.verdicts.total()) == self._end:
            raise Killed


class RollsOutAtOnce(SerialRuntime):
    """Rolls out when a group is launched, as actors do that run ahead of the learner."""

    def launch(self, request: RolloutRequest) -> None:
        super().launch(request)
        batch, self._batch = self._batch, None
        summary = super().next_event()
        self._batch = batch
        assert isinstance(summary, GroupSummary)
        self._made.append(summary)

    def next_event(self) -> GroupSummary | UpdateReport:
        return self._made.popleft() if self._batch is None else super().next_event()

    @property
    def dispatch_counts(self) -> DispatchCounts:
        return replace(super().dispatch_counts, num_running=len(self._made))

    @functools.cached_property
    def _made(self) -> deque[GroupSummary]:
        return deque()


def train_keeping(
    kept: KeptGroups, log: Log, start: UpdateRecord | None = None, *, kind: str = "laplace", lag: int = 0
) -> tuple[RecallingRuntime, SerialRuntime]:
    """Train as a process of its own does, from the start or after an update."""
    policy = POLICIES[kind]()
    if start:
        apply(start.weights, policy)
    arrays = policy.state_arrays()

    def build():
        rebuilt = POLICIES[kind]()
        rebuilt.load_state_arrays(arrays)
        return rebuilt

    inner = (RollsOutAtOnce if lag else SerialRuntime)(replace(line_parts(build), keep_group=kept.save))
    if start:
        inner.restore(start.weights.version, start.learner_state())
    runtime = RecallingRuntime(inner, kept, max_policy_lag=lag)
    progress = start.progress if start else Progress()
    sampling = replace(SAMPLING, max_policy_lag=lag)
    with contextlib.suppress(Killed):
        train(
            runtime, line_stream(), sampling=sampling, num_updates=NUM_UPDATES, seed=5, callbacks=[log], start=progress
        )
    return runtime, inner


@pytest.fixture
def kept(tmp_path: Path) -> KeptGroups:
    return KeptGroups(tmp_path / "kept-groups")


def stop_in_update_3(kept: KeptGroups, kind: str = "laplace", lag: int = 0) -> Log:
    """Leave the groups of a process that dies in its third update, after the fifth group."""
    log = DiesAt(3, 5)
    train_keeping(kept, log, kind=kind, lag=lag)
    assert len(log.records) == 2
    return log


@pytest.mark.parametrize(("kind", "checkpoint"), [("laplace", 0), ("laplace", 2), ("tokens", 2)])
def test_no_group_since_the_checkpoint_is_rolled_out_again_and_the_weights_are_the_same(
    kind: str, checkpoint: int, kept: KeptGroups
) -> None:
    whole = train_on(SerialRuntime(line_parts(POLICIES[kind])), NUM_UPDATES)
    broken = stop_in_update_3(kept, kind)
    start = broken.records[checkpoint - 1] if checkpoint else None
    kept.remove_before(start.progress.next_index if start else 0)
    num_kept = len(kept)
    log = Log()
    runtime, inner = train_keeping(kept, log, start, kind=kind)
    assert checksums(log) == checksums(whole)[checkpoint:]
    assert runtime.num_recalled == num_kept > 0
    num_needed = sum(record.stats.verdicts.total() for record in whole.records[checkpoint:])
    assert inner.dispatch_counts.num_dispatched == num_needed - num_kept
    for record, other in zip(log.records, whole.records[checkpoint:], strict=True):
        assert record.stats.verdicts == other.stats.verdicts
        assert record.stats.env_steps == other.stats.env_steps
        assert record.ledger.balance == 0
    assert log.records[-1].ledger.trained == (NUM_UPDATES - checkpoint) * SAMPLING.groups_per_update


def damage_groups(kept: KeptGroups) -> None:
    for path in kept.folder.glob("*.group"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)


def empty_all(kept: KeptGroups) -> None:
    for path in kept.folder.iterdir():
        path.write_bytes(b"")


def exchange_weights(kept: KeptGroups) -> None:
    for path in kept.folder.glob("*.json"):
        note = kept.note(int(path.stem))
        assert note is not None
        kept.save_note(replace(note, weights="0" * 64))


def use_a_newer_format(kept: KeptGroups) -> None:
    for path in kept.folder.glob("*.json"):
        path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))


@pytest.mark.parametrize("harm", [damage_groups, empty_all, exchange_weights, use_a_newer_format])
def test_what_is_damaged_or_of_other_weights_is_rolled_out_again(
    harm: Callable[[KeptGroups], None], kept: KeptGroups
) -> None:
    whole = train_on(SerialRuntime(line_parts(POLICIES["laplace"])), NUM_UPDATES)
    start = stop_in_update_3(kept).records[1]
    harm(kept)
    log = Log()
    runtime, _ = train_keeping(kept, log, start)
    assert checksums(log) == checksums(whole)[2:]
    rejected = sum(record.stats.verdicts.total() for record in whole.records[2:])
    assert runtime.num_recalled < (5 if harm is damage_groups else 1) <= rejected


def test_with_policy_lag_groups_of_earlier_versions_are_recalled_within_the_bound(kept: KeptGroups) -> None:
    start = stop_in_update_3(kept, lag=1).records[1]
    kept.remove_before(start.progress.next_index)
    versions = {note.summary.version for index in range(200) if (note := kept.note(index))}
    assert 1 in versions, "rolled out before the checkpoint"
    num_kept, log = len(kept), Log()
    runtime, _ = train_keeping(kept, log, start, lag=1)
    assert runtime.num_recalled == num_kept
    assert [record.ledger.balance for record in log.records] == [0, 0]


def test_groups_are_deleted_once_a_checkpoint_has_made_them_superfluous(kept: KeptGroups, tmp_path: Path) -> None:
    broken = stop_in_update_3(kept)
    cleaner = KeptGroupsCleaner(kept, lambda update: tmp_path / f"update-{update}")
    num_kept = len(kept)
    cleaner.on_update(broken.records[0])
    assert len(kept) == num_kept, "there is no checkpoint of update 1"
    (tmp_path / "update-2").mkdir()
    cleaner.on_update(broken.records[1])
    assert len(kept) == 5
    assert all(int(path.stem) >= broken.records[1].progress.next_index for path in kept.folder.iterdir())


def a_group(kept: KeptGroups) -> Group:
    _, inner = train_keeping(kept, DiesAt(1, 1))
    (path,) = kept.folder.glob("*.json")
    note = kept.note(int(path.stem))
    assert note is not None
    return kept.group(note) or join_groups(next(iter(inner._finished.values())))


def test_a_group_comes_back_as_it_was_saved(kept: KeptGroups) -> None:
    group = a_group(kept)
    kept.save(group)
    back = kept.group(Note(summarize(group, None), "", is_trained=True))
    assert back is not None
    assert (back.index, back.version) == (group.index, group.version)
    for rollout, other in zip(back.rollouts, group.rollouts, strict=True):
        assert (rollout.success, rollout.num_steps, rollout.record.keys()) == (
            other.success,
            other.num_steps,
            other.record.keys(),
        )
        for name, array in other.record.items():
            np.testing.assert_array_equal(rollout.record[name], array)
        np.testing.assert_array_equal(rollout.log_probs_TU, other.log_probs_TU)
        np.testing.assert_array_equal(rollout.valid_TU, other.valid_TU)
    another = replace(summarize(group, None), version=Version(7))
    assert kept.group(Note(another, "", is_trained=True)) is None, "it was rolled out again since"


def test_a_full_disk_costs_a_warning_and_not_the_run(kept: KeptGroups, caplog: pytest.LogCaptureFixture) -> None:
    whole = train_on(SerialRuntime(line_parts(POLICIES["laplace"])), NUM_UPDATES)
    log = Log()
    with full_disk(10):
        train_keeping(kept, log)
    assert checksums(log) == checksums(whole)
    text = f"a killed run will repeat its groups: they cannot be kept in {kept.folder}: File too large"
    assert caplog.messages == [text], "once, not for each group"
