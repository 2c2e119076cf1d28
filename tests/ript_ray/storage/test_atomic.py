from pathlib import Path

import pytest

from ript_ray.errors import StorageError
from ript_ray.storage.atomic import atomic_write, make_directory, os_errors_as_storage_error, require_absent
from ript_ray.storage.hashed_dir import atomic_directory
from ript_ray.storage.jsonl import AppendOnlyLog
from tests.disk import flushed_paths, full_disk


def test_writing_creates_or_replaces_a_file_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    atomic_write(path, "grün")
    assert path.read_bytes() == "grün".encode()
    atomic_write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    atomic_write(path, "old")
    with full_disk(100), pytest.raises(StorageError, match=r"results\.json cannot be written: .*File too large"):
        atomic_write(path, "x" * 1000)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_temporary_file_of_a_killed_process_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".results.json.unfinished").write_text("a longer text that was cut o")
    atomic_write(tmp_path / "results.json", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


def test_a_missing_directory_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "results.json"
    with pytest.raises(StorageError, match=f"{path} cannot be written: .*No such file or directory"):
        atomic_write(path, "new")


def test_only_os_errors_become_storage_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), os_errors_as_storage_error(tmp_path):
        raise ValueError("mine")


def test_an_output_that_exists_is_refused(tmp_path: Path) -> None:
    require_absent(tmp_path / "out")
    with pytest.raises(StorageError, match=f"{tmp_path} exists already; nothing is overwritten"):
        require_absent(tmp_path)


def test_a_real_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    atomic_write(path, "old")
    (tmp_path / ".results.json.unfinished").symlink_to("/dev/full")  # every write to it: no space left on device
    with pytest.raises(StorageError, match=r"results\.json cannot be written: .*No space left on device"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_entries_of_new_files_and_directories_are_flushed_too(tmp_path: Path) -> None:
    with flushed_paths() as flushed:
        make_directory(tmp_path / "a" / "b")
        assert flushed == [tmp_path / "a", tmp_path]
        make_directory(tmp_path / "a" / "b")
        assert len(flushed) == 2
        with atomic_directory(tmp_path / "checkpoints" / "update-00000") as unfinished:
            (unfinished / "weights").touch()
        assert {tmp_path, tmp_path / "checkpoints"} <= set(flushed[2:])
        flushed.clear()
        log = AppendOnlyLog(tmp_path / "metrics.jsonl", "points")
        for _ in range(2):
            log.append("{}")
            log.flush()
        assert flushed == [tmp_path / "metrics.jsonl", tmp_path, tmp_path / "metrics.jsonl"]
