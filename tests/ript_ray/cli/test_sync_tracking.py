"""Uploading a finished run: no duplicates, complete, with its final status."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ript_ray.cli.main import SyncTracking
from ript_ray.cli.sync_tracking import sync_tracking
from ript_ray.config.experiment import Experiment
from ript_ray.errors import CheckpointError, RunInUseError, TrackingError
from ript_ray.runs.run_dir import RunDir
from ript_ray.runs.tracked import tracking_identity
from ript_ray.tracking.metrics_log import MetricPoint, MetricsLog
from ript_ray.tracking.mlflow_run import MlflowRun
from ript_ray.tracking.tracker import RunStatus
from tests.tracked import history, list_experiments, only_run, point, points, rates


@pytest.fixture
def folder(tmp_path: Path) -> RunDir:
    """A run of five updates, killed in the sixth."""
    folder = RunDir.create(tmp_path, Experiment("line", ("reach-v3",)))
    log_points(folder, points(1, 2, 3, 4, 5))
    with folder.metrics_log.open("a") as file:
        file.write('{"schema": 2, "update": 6, "env')
    return folder


def log_points(folder: RunDir, points: list[MetricPoint]) -> None:
    metrics_log = MetricsLog(folder.metrics_log)
    for each in points:
        metrics_log.append(each)


def test_points_that_were_not_delivered_are_uploaded_later_without_duplicates(
    store: str, folder: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.results.write_text("{}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match="uploading to the tracking store failed: MlflowException: "):
        sync_tracking(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    for _ in range(2):
        assert SyncTracking(folder.path).run() == 0
        assert capsys.readouterr().out == "5 points are in the tracking store\n"
    assert only_run(store).info.status == "FINISHED"
    assert history(store) == rates(1, 2, 3, 4, 5)


def test_a_partly_tracked_run_is_completed_in_the_same_mlflow_run_and_keeps_its_status(
    store: str, folder: RunDir
) -> None:
    run = MlflowRun(tracking_identity(folder, Experiment("line", ("reach-v3",))), store)
    run.log(points(1, 2))
    run.end(RunStatus.FAILED)
    folder.status.write_text('{"status": "KILLED"}')
    assert sync_tracking(folder) == 5
    assert only_run(store).info.status == "FAILED"
    assert history(store) == rates(1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("content", "status"), [('{"status": "FAILED"}', "FAILED"), ("", "KILLED"), ('{"status": "?"}', "KILLED")]
)
def test_a_run_unknown_to_the_store_gets_the_status_from_its_directory(
    store: str, folder: RunDir, content: str, status: str
) -> None:
    folder.status.write_text(content)
    sync_tracking(folder)
    assert only_run(store).info.status == status


def test_an_uploaded_run_is_tagged_with_the_versions_it_ran_with(store: str, folder: RunDir) -> None:
    (folder.path / "versions.json").write_text('{"torch": "1.0", "commit": "abc"}')
    sync_tracking(folder)
    tags = only_run(store).data.tags
    assert (tags["torch"], tags["commit"], tags["ript_ray.run_id"]) == ("1.0", "abc", folder.run_id)
    assert "ray" not in tags


def test_a_run_can_be_uploaded_to_a_second_store(store: str, folder: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    sync_tracking(folder)
    other = store.replace("store.db", "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    sync_tracking(folder)
    assert history(other) == rates(1, 2, 3, 4, 5)


def test_an_upload_much_later_tells_when_the_run_began(store: str, folder: RunDir) -> None:
    os.utime(folder.path / "versions.json", (1_700_000_000, 1_700_000_000))
    sync_tracking(folder)
    assert only_run(store).info.start_time == 1_700_000_000_000


def test_a_long_metrics_log_is_uploaded_in_batches(store: str, folder: RunDir) -> None:
    many = {f"metric/{number}": 1.0 for number in range(30)}
    folder.metrics_log.unlink()
    log_points(folder, [replace(point(update), metrics=point(update).metrics | many) for update in range(200)])
    assert sync_tracking(folder) == 200
    assert history(store) == rates(*range(200))


def test_a_run_in_use_or_a_foreign_directory_is_refused(store: str, folder: RunDir, tmp_path: Path) -> None:
    with folder.lock(), pytest.raises(RunInUseError, match=f"is in use by process {os.getpid()}"):
        sync_tracking(RunDir(folder.path))
    with pytest.raises(CheckpointError, match="is not the folder of a run"):
        sync_tracking(RunDir(tmp_path / "foreign"))
    assert list_experiments(store) == ["Default"]
