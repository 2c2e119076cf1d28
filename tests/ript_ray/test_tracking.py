import json
import time
from pathlib import Path

import pytest

from ript_ray.config import Experiment
from ript_ray.errors import TrackingError
from ript_ray.mlflow_store import Identity, Point
from ript_ray.recorder import sync_tracking
from ript_ray.run_folder import RunFolder
from ript_ray.tracking import CLOSE_TIMEOUT_S, RunStatus, Tracker, now_ms, read_journal


def point(update: int) -> Point:
    metrics = {"train/success_rate": update / 10, "ppo/loss": -0.1}
    return Point(update, 1000 * update, 2.5 * update, now_ms() + update, metrics)


def track(folder: Path, points: list[Point]) -> str | None:
    identity = Identity("line", "first", {"ppo.clip_low": "0.2"}, {"commit": "abc"}, folder / "mlflow-run-id")
    tracker = Tracker(folder / "metrics.jsonl", identity)
    for each in points:
        started = time.perf_counter()
        tracker.log(each)
        assert time.perf_counter() - started < 0.5, "logging waited for the store"
    (folder / "results.json").write_text("{}")
    tracker.log_files([folder / "results.json"])
    return tracker.close(RunStatus.FINISHED)


def test_metrics_arrive_on_the_axes_of_updates_steps_and_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    calls = count_log_batch_calls(monkeypatch)
    assert track(tmp_path, [point(1), point(2)]) is None
    assert calls == {"metrics": 2, "params": 1}, "one call per update"

    from mlflow import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("line").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"ppo.clip_low": "0.2"}
    assert run.data.tags["commit"] == "abc"
    steps = {
        name: [metric.step for metric in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics
    }
    assert steps == {
        "train/success_rate": [1, 2],
        "ppo/loss": [1, 2],
        "by_env_steps/train/success_rate": [1000, 2000],
        "by_wall_s/train/success_rate": [2, 5],
    }
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["results.json"]


def count_log_batch_calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    from mlflow import MlflowClient

    calls = {"metrics": 0, "params": 0}
    original = MlflowClient.log_batch

    def counting(self, run_id, metrics=(), params=(), **other):
        calls["metrics"] += bool(metrics)
        calls["params"] += bool(params)
        return original(self, run_id, metrics=metrics, params=params, **other)

    monkeypatch.setattr(MlflowClient, "log_batch", counting)
    return calls


def test_a_dead_server_costs_the_loop_nothing_and_the_journal_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    points = [point(update) for update in range(1, 30)]
    started = time.monotonic()
    problem = track(tmp_path, points)
    assert problem is not None
    assert "tracking store" in problem
    assert time.monotonic() - started < CLOSE_TIMEOUT_S + 2
    assert read_journal(tmp_path / "metrics.jsonl") == points


def test_what_did_not_arrive_is_sent_later_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    folder = RunFolder.create(tmp_path, Experiment("line", ("reach-v3",)))
    points = [point(update) for update in range(1, 6)]
    folder.journal.write_text("".join(json.dumps(vars(each)) + "\n" for each in points) + '{"update": 6, "env')
    folder.results.write_text("{}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match="does not take the run"):
        sync_tracking(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert sync_tracking(folder) == 5
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("line").experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "train/success_rate")
    assert [(metric.step, metric.value) for metric in history] == [(update, update / 10) for update in range(1, 6)]
