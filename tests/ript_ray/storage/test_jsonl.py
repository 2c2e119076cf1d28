from pathlib import Path

import pytest

from ript_ray.errors import StorageError
from ript_ray.storage.jsonl import AppendOnlyLog
from tests.disk import full_disk


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines.jsonl"


def append(log: AppendOnlyLog, *lines: str) -> None:
    for line in lines:
        log.append(line)
    log.flush()


def test_lines_are_buffered_until_flush_and_follow_those_of_an_earlier_process(path: Path) -> None:
    append(AppendOnlyLog(path, "lines"), "one")
    log = AppendOnlyLog(path, "lines")
    log.append("two")
    assert path.read_text() == "one\n"
    log.flush()
    assert path.read_text() == "one\ntwo\n"
    assert log.error is None


@pytest.mark.parametrize("torn", [b"tw", b"\0" * 64, b"\xff"])
def test_a_torn_last_line_of_a_crashed_process_is_replaced(path: Path, torn: bytes) -> None:
    path.write_bytes(b"one\n" + torn)
    append(AppendOnlyLog(path, "lines"), "two")
    assert path.read_text() == "one\ntwo\n"


def test_lines_that_a_full_disk_rejects_are_counted_and_written_later_in_order(path: Path) -> None:
    log = AppendOnlyLog(path, "lines")
    append(log, "one")
    with full_disk(10):
        append(log, "a long line")
        append(log, "another")
        assert log.error == f"{path} cannot be written: [Errno 27] File too large (unwritten lines: 2)"
        assert path.read_text() == "one\n", "the partly written line must be removed"
    log.flush()
    assert log.error is None
    assert path.read_text() == "one\na long line\nanother\n"


def test_a_rewrite_replaces_all_lines_and_appending_continues_after_it(path: Path) -> None:
    log = AppendOnlyLog(path, "lines")
    append(log, "one", "two", "three")
    log.rewrite(["one"])
    append(log, "four")
    assert path.read_text() == "one\nfour\n"


def test_a_rewrite_that_fails_keeps_the_file(path: Path) -> None:
    log = AppendOnlyLog(path, "lines")
    append(log, "one", "two")
    with full_disk(5), pytest.raises(StorageError, match=r"lines\.jsonl cannot be written"):
        log.rewrite(["a long line"])
    append(log, "three")
    assert path.read_text() == "one\ntwo\nthree\n"


def test_rewriting_a_missing_file_creates_none(path: Path) -> None:
    AppendOnlyLog(path, "lines").rewrite(["one"])
    assert not path.exists()
