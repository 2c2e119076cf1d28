import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pytest

from ript_ray.errors import CheckpointError, StorageError
from ript_ray.tracking.metrics_log import MetricPoint, MetricsLog, read_metrics
from tests.disk import full_disk

STAGES = ("prior", "ript")
SCHEMA_1 = Path(__file__).parents[2] / "fixtures" / "schema1" / "run" / "metrics.jsonl"
"""Log of a run with all three stages, written before lines had a schema; it ends after update 3."""


def update(number: int, **metrics: float) -> MetricPoint:
    return MetricPoint(number, 100 * number, 1.5 * number, 0, {"rate": 0.5, **metrics}, "update")


def evaluation(number: int) -> MetricPoint:
    return MetricPoint(number, 100 * number, 1.5 * number, 0, {"rate": 0.5}, "evaluation")


def step(number: int) -> MetricPoint:
    return MetricPoint(number, 0, 0.5, 0, {"prior/loss": 0.5}, "stage", "prior")


def log_points(path: Path, *points: MetricPoint) -> MetricsLog:
    metrics_log = MetricsLog(path)
    for point in points:
        metrics_log.append(point)
    return metrics_log


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_points_that_a_full_disk_rejects_are_written_with_the_next_point(path: Path) -> None:
    metrics_log = MetricsLog(path)
    metrics_log.append(update(1))
    whole = path.stat().st_size
    with full_disk(whole + 30):
        metrics_log.append(update(2))
        metrics_log.append(update(3))
        assert metrics_log.error == f"{path} cannot be written: [Errno 27] File too large (unwritten points: 2)"
        assert path.stat().st_size == whole, "the partly written line must be removed"
    metrics_log.append(update(4))
    assert metrics_log.error is None
    assert read_metrics(path) == [update(number) for number in (1, 2, 3, 4)]


def test_unwritten_points_can_be_flushed_without_another_point(path: Path) -> None:
    metrics_log = MetricsLog(path)
    with full_disk(10):
        metrics_log.append(update(1))
    metrics_log.flush()
    assert metrics_log.error is None
    assert read_metrics(path) == [update(1)]


def test_logging_to_a_deleted_directory_does_not_raise(path: Path) -> None:
    metrics_log = MetricsLog(path / "gone" / "metrics.jsonl")
    metrics_log.append(update(1))
    assert "No such file or directory" in str(metrics_log.error)


@pytest.mark.parametrize(
    "torn",
    [b'{"schema": 2, "update": 5, "env_st', b"\0" * 64, b"\xff\xfe\n", b'{"schema": 2, "update": 5}\n', b"[1]\n"],
)
def test_a_torn_or_damaged_last_line_is_not_read(path: Path, torn: bytes) -> None:
    MetricsLog(path).append(update(1))
    with path.open("ab") as file:
        file.write(torn)
    assert read_metrics(path) == [update(1)]


def test_a_damaged_line_costs_no_other_one_and_truncating_keeps_the_old_file(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics_log = log_points(path, *(update(number) for number in (1, 2, 3, 4)))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\xff" + b"".join(lines[1:]))
    damaged = path.read_bytes()
    assert metrics_log.truncate_after("ript", 3, stages=STAGES, keep_evaluation=False) == [update(1), update(3)]
    assert read_metrics(path) == [update(1), update(3)]
    (copy,) = path.parent.glob(f"{path.name}.damaged-*")
    assert copy.read_bytes() == damaged
    assert caplog.messages[:2] == [
        f"{path}: cannot read line 2; skipping",
        f"{path} is damaged: it is kept as {copy.name}",
    ]


def test_the_next_point_replaces_a_torn_last_line(path: Path) -> None:
    MetricsLog(path).append(update(1))
    with path.open("ab") as file:
        file.write(b'{"update": 2, "env_st')
    MetricsLog(path).append(update(3))
    assert read_metrics(path) == [update(1), update(3)]


def test_a_non_finite_metric_is_omitted(path: Path) -> None:
    metrics_log = MetricsLog(path)
    written = metrics_log.append(update(1, loss=math.nan, norm=math.inf, bound=-math.inf, kl=0.25))
    assert written == update(1, kl=0.25)
    assert read_metrics(path) == [written]
    assert json.loads(path.read_text(), parse_constant=pytest.fail)


def test_truncating_drops_later_updates_stages_and_a_torn_line(path: Path) -> None:
    points = [step(10), step(20), evaluation(0), *(update(number) for number in (1, 2, 3)), evaluation(3)]
    metrics_log = log_points(path, *points)
    with path.open("ab") as file:
        file.write(b'{"schema": 2, "update": 4, "env')
    kept = metrics_log.truncate_after("ript", 3, stages=STAGES, keep_evaluation=False)
    assert kept == points[:6], "the evaluation after update 3 is repeated"
    assert metrics_log.truncate_after("ript", 2, stages=STAGES, keep_evaluation=False) == points[:5]
    metrics_log.append(update(3))
    assert read_metrics(path) == points[:6]
    assert metrics_log.truncate_after("prior", 10, stages=STAGES, keep_evaluation=False) == points[:1]
    assert read_metrics(path) == points[:1]


def test_the_first_evaluation_is_kept_if_it_is_not_repeated(path: Path) -> None:
    metrics_log = log_points(path, evaluation(0), update(1))
    assert metrics_log.truncate_after("ript", 0, stages=STAGES, keep_evaluation=True) == [evaluation(0)]
    assert metrics_log.truncate_after("ript", 0, stages=STAGES, keep_evaluation=False) == []
    assert path.read_bytes() == b""


def test_truncating_a_missing_log_creates_no_file(path: Path) -> None:
    assert MetricsLog(path).truncate_after("ript", 2, stages=STAGES, keep_evaluation=False) == []
    assert not path.exists()


def test_truncating_a_log_with_points_of_an_unknown_stage_is_refused_and_changes_nothing(path: Path) -> None:
    metrics_log = log_points(path, step(10), update(1))
    content = path.read_bytes()
    with pytest.raises(
        CheckpointError, match=f"{path} has points of stage 'prior'; the stages of this run are scale_head, ript"
    ):
        metrics_log.truncate_after("ript", 0, stages=("scale_head", "ript"), keep_evaluation=False)
    assert path.read_bytes() == content


def test_a_truncation_that_fails_keeps_the_log(path: Path) -> None:
    metrics_log = log_points(path, update(1), update(2), update(3))
    with full_disk(100), pytest.raises(StorageError, match=r"metrics\.jsonl cannot be written"):
        metrics_log.truncate_after("ript", 2, stages=STAGES, keep_evaluation=False)
    assert read_metrics(path) == [update(1), update(2), update(3)]


def test_every_line_carries_its_schema_and_kind(path: Path) -> None:
    log_points(path, step(10), evaluation(0), update(1))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["schema"], line["kind"]) for line in lines] == [(3, "stage"), (3, "evaluation"), (3, "update")]


def test_lines_without_a_schema_get_their_kind_from_the_names_of_their_metrics(tmp_path: Path) -> None:
    points = read_metrics(SCHEMA_1)
    lines = [json.loads(line) for line in SCHEMA_1.read_text().splitlines()]
    assert [{**vars(point), "kind": None} for point in points] == [{**line, "kind": None} for line in lines]
    assert set(Counter((point.stage, point.kind) for point in points)) == {
        ("autoencoder", "stage"),
        ("prior", "stage"),
        ("ript", "evaluation"),
        ("ript", "update"),
    }
    ript = [(point.update, point.kind) for point in points if point.stage == "ript"]
    assert ript == [(0, "evaluation"), (1, "update"), (2, "update"), (3, "update")]


def test_a_log_without_schema_is_rewritten_with_the_current_one_when_its_run_is_resumed(path: Path) -> None:
    shutil.copy(SCHEMA_1, path)
    stages = ("autoencoder", "prior", "ript")
    kept = MetricsLog(path).truncate_after("ript", 2, stages=stages, keep_evaluation=False)
    assert kept == read_metrics(SCHEMA_1)[:-1]
    assert read_metrics(path) == kept
    assert {json.loads(line)["schema"] for line in path.read_text().splitlines()} == {3}


def test_a_log_of_a_newer_schema_is_refused_and_not_truncated(path: Path) -> None:
    metrics_log = log_points(path, update(1))
    with path.open("a") as file:
        file.write('{"schema": 4, "at": 7}\n')
    content = path.read_bytes()
    message = rf"{path} was written by a newer version of ript-ray \(schema 4\); this one reads up to 3"
    with pytest.raises(CheckpointError, match=message):
        read_metrics(path)
    with pytest.raises(CheckpointError, match=message):
        metrics_log.truncate_after("ript", 0, stages=STAGES, keep_evaluation=False)
    assert path.read_bytes() == content


def test_unknown_keys_are_ignored_and_missing_optional_ones_get_their_defaults(path: Path) -> None:
    log_points(path, update(1))
    line = json.loads(path.read_text())
    del line["stage"]
    path.write_text(json.dumps({**line, "node": "a"}) + "\n")
    assert read_metrics(path) == [update(1)]
