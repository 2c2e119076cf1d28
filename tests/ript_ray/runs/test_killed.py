"""A run whose process was killed by force is closed by the next command that sees it."""

import json
import sys
from pathlib import Path

import pytest

from ript_ray.config.experiment import Experiment
from ript_ray.runs.killed import close_killed_run, closing_killed_runs
from ript_ray.runs.run_dir import RunDir
from ript_ray.runs.tracked import tracking_identity
from ript_ray.tracking.mlflow_run import MlflowRun
from ript_ray.tracking.store import Origin
from tests.commands import run
from tests.ript_ray.tracking.test_tracker import wait_until
from tests.tracked import only_run

EXPERIMENT = Experiment("line", ("reach-v3",))


def killed_run(runs: Path) -> RunDir:
    """A run whose process is gone without a word."""
    folder = RunDir.create(runs, EXPERIMENT)
    with folder.lock():
        Origin.here().write(folder.path)
    return folder


def test_a_killed_run_is_closed_on_disk_and_in_the_store_and_a_running_one_is_left_alone(
    store: str, tmp_path: Path
) -> None:
    folder = killed_run(tmp_path / "runs")
    MlflowRun(tracking_identity(folder, EXPERIMENT), store).mark_running()
    with folder.lock(), closing_killed_runs(tmp_path / "runs"):
        pass
    assert (only_run(store).info.status, folder.status.exists()) == ("RUNNING", False)
    with closing_killed_runs(tmp_path / "runs"):
        pass
    wait_until(lambda: json.loads(folder.status.read_text()) == {"status": "KILLED"}, "the end")  # it goes on
    assert only_run(store).info.status == "KILLED"


def test_a_run_that_was_killed_after_its_results_has_finished(store: str, tmp_path: Path) -> None:
    folder = killed_run(tmp_path / "runs")
    MlflowRun(tracking_identity(folder, EXPERIMENT), store).mark_running()
    folder.results.write_text("{}")
    assert close_killed_run(folder.path)
    assert not close_killed_run(folder.path), "once is enough"
    assert only_run(store).info.status == "FINISHED"


def test_a_store_that_is_down_delays_nothing_and_the_run_is_closed_later(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = killed_run(tmp_path / "runs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with closing_killed_runs(tmp_path / "runs"):
        pass
    wait_until(lambda: json.loads(folder.status.read_text()) == {"status": "KILLED", "is_tracked": False}, "the end")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    MlflowRun(tracking_identity(folder, EXPERIMENT), store).mark_running()
    assert close_killed_run(folder.path)
    assert (only_run(store).info.status, json.loads(folder.status.read_text())) == ("KILLED", {"status": "KILLED"})


def test_a_killed_run_with_a_policy_of_an_unknown_kind_is_closed_too(store: str, tmp_path: Path) -> None:
    folder = killed_run(tmp_path / "runs")
    MlflowRun(tracking_identity(folder, EXPERIMENT), store).mark_running()
    content = json.loads(folder.config.read_text())
    folder.config.write_text(json.dumps({**content, "policy": {"kind": "of-a-plugin"}}))
    assert close_killed_run(folder.path)
    assert only_run(store).info.status == "KILLED"


@pytest.mark.cli
def test_looking_for_killed_runs_imports_mlflow_only_to_close_one(tmp_path: Path) -> None:
    for _ in range(3):
        folder = killed_run(tmp_path / "runs")
        folder.status.write_text('{"status": "FINISHED"}')
    RunDir.create(tmp_path / "runs", EXPERIMENT)  # another process is about to lock it
    code = (
        "import sys; from pathlib import Path; from ript_ray.runs.killed import closing_killed_runs\n"
        "with closing_killed_runs(Path('runs')): pass\n"
        "raise SystemExit('mlflow' in sys.modules)"
    )
    assert run(sys.executable, "-c", code, cwd=tmp_path).returncode == 0
