"""The log of every group and the kept weights survive interruptions and full disks."""

import json
from pathlib import Path

import numpy as np
import pytest

from ript_ray.config.experiment import Kept
from ript_ray.errors import CheckpointError
from ript_ray.rl.callbacks import RolloutStats, UpdateRecord
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.train import train
from ript_ray.rl.weights import snapshot
from ript_ray.runs.rollout_log import GroupRecord, RolloutLog, load_weights, read_groups, save_weights, weights_file
from ript_ray.runtime.serial import SerialRuntime
from ript_ray.types import GroupSummary, Progress, Version
from tests.conftest import line_parts, line_stream, tiny_quest
from tests.disk import full_disk
from tests.fakes import TinyChunkPolicy
from tests.ript_ray.runtime.test_runtimes import SAMPLING, Log

PARTS = line_parts(lambda: TinyChunkPolicy("laplace"))


def train_with(log: RolloutLog, num_updates: int, runtime: SerialRuntime, start: Progress | None = None) -> Log:
    """Train on the line; gives what another observer saw."""
    seen = Log()
    with log:
        train(
            runtime,
            line_stream(),
            sampling=SAMPLING,
            num_updates=num_updates,
            seed=5,
            callbacks=[log, seen],
            start=start,
        )
    return seen


def log_in(folder: Path, start: Progress | None = None, keep_versions: Kept = "all") -> RolloutLog:
    paths = folder / "groups.jsonl", folder / "weights"
    return RolloutLog(*paths, line_stream(), start=start or Progress(), keep_versions=keep_versions)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_group_has_a_line_with_its_context_and_its_outcome(tmp_path: Path) -> None:
    runtime, stream = SerialRuntime(PARTS), line_stream()
    seen = train_with(log_in(tmp_path), 2, runtime)
    records = read_groups(tmp_path / "groups.jsonl")
    assert [record.group for record in records] == list(range(seen.num_groups))
    assert sum(record.verdict is Verdict.ACCEPTED for record in records) == 2 * SAMPLING.groups_per_update
    for record in records:
        assert record.version == record.update - 1
        assert record.task == stream.at(record.group).task
        assert stream._contexts[record.context] == stream.at(record.group)
        assert len(record.successes) == len(record.num_steps) == SAMPLING.group_size
    line = json.loads((tmp_path / "groups.jsonl").read_text().splitlines()[0])
    assert list(line) == [
        "schema",
        "group",
        "update",
        "version",
        "task",
        "context",
        "successes",
        "num_steps",
        "verdict",
    ]


def test_weights_of_every_update_round_trip_bit_for_bit(tmp_path: Path) -> None:
    seen = train_with(log_in(tmp_path), 3, SerialRuntime(PARTS))
    for record in seen.records:
        policy = TinyChunkPolicy("laplace")
        load_weights(weights_file(tmp_path / "weights", record.weights.version), policy)
        assert snapshot(policy, record.weights.version).checksum == record.weights.checksum


def test_of_the_weights_only_the_newest_versions_are_kept(tmp_path: Path) -> None:
    train_with(log_in(tmp_path, keep_versions=2), 4, SerialRuntime(PARTS))
    assert sorted(path.name[7:12] for path in (tmp_path / "weights").iterdir()) == ["00003", "00004"]


def test_a_resumed_run_drops_what_it_repeats_and_ends_with_the_same_files(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    train_with(log_in(whole), 4, SerialRuntime(PARTS))
    runtime = SerialRuntime(PARTS)
    last = train_with(log_in(broken), 2, runtime).records[-1]
    (broken / "groups.jsonl").write_bytes((whole / "groups.jsonl").read_bytes() + b'{"group": 99, "upd')
    (broken / "weights" / "update-00003.safetensors").write_bytes(b"of an update after the checkpoint")
    resumed = log_in(broken, last.progress)
    assert max(record.group for record in read_groups(broken / "groups.jsonl")) == last.progress.next_index - 1
    assert sorted(path.name[7:12] for path in (broken / "weights").iterdir()) == ["00001", "00002"]
    train_with(resumed, 4, runtime, last.progress)
    assert files_of(broken) == files_of(whole)


def test_a_damaged_line_costs_no_other_group_and_the_old_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl"
    train_with(log_in(tmp_path), 2, SerialRuntime(PARTS))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"{" + lines[3], *lines[4:]]))
    damaged = path.read_bytes()
    log_in(tmp_path, Progress(2, 1000))
    assert path.read_bytes() == b"".join([*lines[:3], *lines[4:]])
    (copy,) = tmp_path.glob("groups.jsonl.damaged-*")
    assert copy.read_bytes() == damaged


def test_a_full_disk_costs_no_line_does_not_end_the_run_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    train_with(log_in(whole), 3, SerialRuntime(PARTS))

    class FullAtTwo(RolloutLog):
        def on_update(self, record: UpdateRecord) -> None:
            with full_disk(100 if record.progress.update == 2 else 1_000_000):
                super().on_update(record)

    log = FullAtTwo(tmp_path / "groups.jsonl", tmp_path / "weights", line_stream(), start=Progress())
    train_with(log, 3, SerialRuntime(PARTS))
    assert (tmp_path / "groups.jsonl").read_bytes() == (whole / "groups.jsonl").read_bytes()
    assert sorted(path.name[7:12] for path in (tmp_path / "weights").iterdir()) == ["00001", "00003"]
    assert "groups.jsonl cannot be written" in caplog.messages[0]
    assert "update-00002.safetensors cannot be written" in caplog.messages[1]
    assert "can be replayed only if it has a checkpoint" in caplog.messages[1]


def test_a_run_may_keep_no_weights(tmp_path: Path) -> None:
    log = RolloutLog(tmp_path / "groups.jsonl", None, line_stream(), start=Progress())
    train_with(log, 1, SerialRuntime(PARTS))
    assert [path.name for path in tmp_path.iterdir()] == ["groups.jsonl"]


def test_a_result_that_is_neither_success_nor_failure_is_written_as_none(tmp_path: Path) -> None:
    summary = GroupSummary(3, Version(0), (1.0, float("nan")), (4, 5), 0, error="a result of another kind")
    with log_in(tmp_path) as log:
        log.on_group(RolloutStats(1, 2), summary, Verdict.INVALID)
    stream = line_stream()
    expected = GroupRecord(3, 1, 0, stream.at(3).task, stream.dataset_index(3), (1, None), (4, 5), Verdict.INVALID)
    assert read_groups(tmp_path / "groups.jsonl") == [expected]


def test_weights_that_are_damaged_or_foreign_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "weights" / "update-00001.safetensors"
    save_weights(path, snapshot(TinyChunkPolicy("laplace"), Version(1)))
    content = bytearray(path.read_bytes())
    with pytest.raises(CheckpointError, match=r"does not fit the policy:(.|\n)*missing policy_prior"):
        load_weights(path, tiny_quest())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"update-00001\.safetensors is damaged"):
        load_weights(path, TinyChunkPolicy("laplace"))
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"update-00001\.safetensors cannot be read"):
        load_weights(path, TinyChunkPolicy("laplace"))


def test_dataset_indices_of_a_stream_identify_its_contexts() -> None:
    stream = line_stream()
    assert np.unique([stream.dataset_index(index) for index in range(12)]).tolist() == list(range(12))
