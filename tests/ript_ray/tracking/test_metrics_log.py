import json
import math
from pathlib import Path

import pytest

from ript_ray.errors import StorageError
from ript_ray.storage.atomic import atomic_write
from ript_ray.tracking.metrics_log import MetricPoint, MetricsLog, read_metrics
from ript_ray.types import RIPT
from tests.disk import full_disk


def training(update: int, **metrics: float) -> MetricPoint:
    return MetricPoint(update, 100 * update, 1.5 * update, 0, {"train/success_rate": 0.5, **metrics})


def evaluation(update: int) -> MetricPoint:
    return MetricPoint(update, 100 * update, 1.5 * update, 0, {"eval/success_rate": 0.5})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_a_line_that_a_full_disk_cut_short_is_taken_back_and_written_before_the_next(path: Path) -> None:
    metrics_log = MetricsLog(path)
    metrics_log.append(training(1))
    whole = path.stat().st_size
    with full_disk(whole + 30):
        metrics_log.append(training(2))
        metrics_log.append(training(3))
        assert metrics_log.error == f"{path} cannot be written: [Errno 27] File too large (points it lacks: 2)"
        assert path.stat().st_size == whole, "half a line is left"
    metrics_log.append(training(4))
    assert metrics_log.error is None
    assert read_metrics(path) == [training(update) for update in (1, 2, 3, 4)]


def test_what_a_full_disk_did_not_take_can_be_written_at_the_end_without_another_point(path: Path) -> None:
    metrics_log = MetricsLog(path)
    with full_disk(10):
        metrics_log.append(training(1))
    metrics_log.flush()
    assert metrics_log.error is None
    assert read_metrics(path) == [training(1)]


def test_a_journal_whose_folder_is_gone_raises_nothing(path: Path) -> None:
    metrics_log = MetricsLog(path / "gone" / "metrics.jsonl")
    metrics_log.append(training(1))
    assert "No such file or directory" in metrics_log.error


@pytest.mark.parametrize("torn", [b'{"update": 5, "env_st', b"\0" * 64, b"\xff\xfe\n", b'{"update": 5}\n', b"[1]\n"])
def test_reading_stops_at_a_torn_line(path: Path, torn: bytes) -> None:
    MetricsLog(path).append(training(1))
    with path.open("ab") as file:
        file.write(torn)
    assert read_metrics(path) == [training(1)]


def test_the_next_point_replaces_a_torn_last_line(path: Path) -> None:
    MetricsLog(path).append(training(1))
    with path.open("ab") as file:
        file.write(b'{"update": 2, "env_st')
    MetricsLog(path).append(training(3))
    assert read_metrics(path) == [training(1), training(3)]


def test_a_metric_that_is_not_finite_is_left_out(path: Path) -> None:
    metrics_log = MetricsLog(path)
    written = metrics_log.append(training(1, loss=math.nan, norm=math.inf, bound=-math.inf, kl=0.25))
    assert written == training(1, kl=0.25)
    assert read_metrics(path) == [written]
    assert json.loads(path.read_text(), parse_constant=pytest.fail)


def test_rewinding_forgets_what_will_be_done_again_and_a_torn_line(path: Path) -> None:
    points = [evaluation(0), *(training(update) for update in (1, 2, 3)), evaluation(3)]
    path.write_bytes(b"".join(json.dumps(vars(point)).encode() + b"\n" for point in points) + b'{"update": 4, "env')
    metrics_log = MetricsLog(path)
    assert metrics_log.truncate_after(RIPT, 3, keep_evaluation=False) == points[:4], "the evaluation is done again"
    assert metrics_log.truncate_after(RIPT, 2, keep_evaluation=False) == points[:3]
    metrics_log.append(training(3))
    assert read_metrics(path) == points[:4]


def test_the_first_evaluation_stays_where_it_is_not_done_again(path: Path) -> None:
    metrics_log = MetricsLog(path)
    for point in (evaluation(0), training(1)):
        metrics_log.append(point)
    assert metrics_log.truncate_after(RIPT, 0, keep_evaluation=True) == [evaluation(0)]
    assert metrics_log.truncate_after(RIPT, 0, keep_evaluation=False) == []
    assert path.read_bytes() == b""


def test_rewinding_where_there_is_no_journal_makes_none(path: Path) -> None:
    assert MetricsLog(path).truncate_after(RIPT, 2, keep_evaluation=False) == []
    assert not path.exists()


def test_a_file_that_a_full_disk_does_not_take_whole_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    atomic_write(path, "old")
    with full_disk(100), pytest.raises(StorageError, match=r"results\.json cannot be written: .*File too large"):
        atomic_write(path, "x" * 1000)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path], "something is left that fills the disk"
