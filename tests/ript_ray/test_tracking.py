import json
import time
from pathlib import Path

import pytest

from ript_ray.tracking import CLOSE_TIMEOUT_S, Point, RunStatus, Tracker, now_ms


def point(update: int) -> Point:
    metrics = {"train/success_rate": update / 10, "ppo/loss": -0.1}
    return Point(update, 1000 * update, 2.5 * update, now_ms() + update, metrics)


def track(folder: Path, points: list[Point]) -> str | None:
    tracker = Tracker(
        folder / "metrics.jsonl", experiment="line", run="first", params={"ppo.clip_low": "0.2"}, tags={"commit": "abc"}
    )
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
    journal = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [Point(**entry) for entry in journal] == points
