"""One folder per run: its identity, and its lock."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ript_ray import api
from ript_ray.config.experiment import Experiment
from ript_ray.errors import CheckpointError, ConfigError, RunInUseError, StorageError
from ript_ray.runs.run_dir import RunDir
from ript_ray.runtime.cluster import Cluster
from tests.commands import environment
from tests.disk import flushed_paths, full_disk

EXPERIMENT = Experiment("small", ("reach-v3",))

HOLD = """
import sys, time
from pathlib import Path
from ript_ray.runs.run_dir import RunDir
with RunDir(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path, EXPERIMENT)


def test_every_run_has_a_unique_and_permanent_id(folder: RunDir, tmp_path: Path) -> None:
    assert len(folder.run_id) == 32
    assert RunDir(folder.path).run_id == folder.run_id
    assert RunDir.create(tmp_path, EXPERIMENT).run_id != folder.run_id


def test_latest_leads_to_the_newest_run_and_an_opened_run_stays_the_one_it_was(tmp_path: Path) -> None:
    latest = tmp_path / "small" / "latest"
    first = RunDir.create(tmp_path, EXPERIMENT)
    assert os.readlink(latest) == first.path.name  # relative, so that the folder of runs can be moved
    opened = RunDir(latest)
    second = RunDir.create(tmp_path, EXPERIMENT)
    assert latest.resolve() == second.path
    assert (opened.path, opened.run_id) == (first.path, first.run_id)


def test_a_run_begins_where_there_can_be_no_link(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "small" / "latest").mkdir(parents=True)
    folder = RunDir.create(tmp_path, EXPERIMENT)
    assert folder.experiment == EXPERIMENT
    assert "there is no link" in caplog.text


def test_a_new_run_survives_a_power_cut(tmp_path: Path) -> None:
    with flushed_paths() as flushed:
        folder = RunDir.create(tmp_path / "runs", EXPERIMENT)
    assert {tmp_path, tmp_path / "runs", folder.path.parent, folder.path} <= set(flushed)


def test_a_folder_older_than_run_ids_gets_one_on_demand(folder: RunDir) -> None:
    (folder.path / "run-id").unlink()
    assert len(folder.run_id) == 32
    assert RunDir(folder.path).run_id == folder.run_id


def test_versions_are_those_the_run_began_with(folder: RunDir) -> None:
    recorded = {"python": "2.7", "commit": "abc"}
    (folder.path / "versions.json").write_text(json.dumps(recorded))
    assert RunDir(folder.path).versions == recorded


def test_what_was_changed_of_the_experiments_file_is_noted_and_follows_an_extension(tmp_path: Path) -> None:
    folder = RunDir.create(tmp_path, EXPERIMENT, changes={"clip-high": "0.28"})
    assert RunDir(folder.path).changes == {"clip-high": "0.28"}
    folder.extend(replace(EXPERIMENT, num_updates=90), 15)
    assert folder.changes == {"clip-high": "0.28", "num-updates": "90"}
    folder.changes_file.write_text("{")
    assert folder.changes is None


def test_where_no_file_states_the_experiment_what_changed_is_not_known(folder: RunDir) -> None:
    folder.extend(replace(EXPERIMENT, num_updates=90), 15)
    assert folder.changes is None


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_versions_that_cannot_be_read_are_told_once_and_stop_nothing(
    folder: RunDir, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (folder.path / "versions.json").write_text(content)
    folder.record_resumption("update-00001", {"python": "3"})
    assert (folder.versions, folder.resumed_versions) == ({}, {})
    assert caplog.text.count("versions.json cannot be read") == 1


def test_a_run_whose_versions_are_unknown_is_not_resumed_if_they_must_be_the_same(folder: RunDir) -> None:
    (folder.path / "versions.json").write_text("garbage")
    with pytest.raises(ConfigError, match=r"is not resumed, .* what it began with is not known"):
        api.resume(folder.path, Cluster(in_process=True), strict=True)


@pytest.mark.parametrize("content", [b"\xff", b"garbage", b"", b"0123456789abcdef0123456789abcdeX"])
def test_a_damaged_id_is_named_with_what_to_do(folder: RunDir, content: bytes) -> None:
    (folder.path / "run-id").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"run-id is damaged: .* delete it, and the run gets another one"):
        _ = folder.run_id


def test_a_run_is_locked_by_one_process_and_unlocked_by_its_death(folder: RunDir) -> None:
    command = [sys.executable, "-c", HOLD, str(folder.path)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(RunInUseError, match=f"{folder.path} is in use by process {holder.pid} on "):
                folder.lock().__enter__()
        finally:
            holder.kill()
    with folder.lock():
        pass


def test_a_run_is_unlocked_by_an_error_and_can_be_locked_again(folder: RunDir) -> None:
    with pytest.raises(ZeroDivisionError), folder.lock():
        raise ZeroDivisionError
    with folder.lock(), pytest.raises(RunInUseError), RunDir(folder.path).lock():
        pass


def test_a_foreign_folder_is_refused_and_left_unchanged(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match=f"{path} is not the folder of a run: it has no config"):
            RunDir(path).lock().__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_does_not_fit_on_the_disk_is_refused_by_name(tmp_path: Path) -> None:
    with full_disk(10), pytest.raises(StorageError, match=r"-seed0/run-id cannot be written"):
        RunDir.create(tmp_path, EXPERIMENT)


def test_a_file_system_without_locks_is_named_with_what_to_do(folder: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))  # as on Lustre without -o flock

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StorageError, match=rf"{folder.path} cannot be locked.*not implemented.*-o flock"):
        folder.lock().__enter__()
