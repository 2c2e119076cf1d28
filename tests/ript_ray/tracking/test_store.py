"""Which store a run belongs to, wherever it has been moved and from wherever it is asked."""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ript_ray.errors import ConfigError
from ript_ray.tracking.mlflow_run import Identity, MlflowRun
from ript_ray.tracking.store import Origin, follow_a_move, ui_command, without_password
from tests.tracked import only_run

IDENTITY = Identity("0123456789abcdef" * 2, "line", "first", {}, {})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "project" / "runs" / "line" / "20261122-000000-seed0"
    folder.mkdir(parents=True)
    return folder


def test_runs_of_a_project_share_the_store_beside_their_folder_whatever_the_working_directory(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Origin.here().write(run)
    expected = f"sqlite:///{run.parents[2]}/mlflow.db"
    for directory in (run.parents[2], run, Path("/")):
        monkeypatch.chdir(directory)
        assert Origin.read(run).store(Path(os.path.relpath(run)), "line") == expected
    assert Origin().store(Path("/run"), "line") == "sqlite:////mlflow.db", "a run that was put somewhere by itself"


def test_a_run_keeps_the_store_that_was_named_at_its_start_and_another_that_is_named_wins(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[2])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///shared.db")
    Origin.here().write(run)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir("/")
    assert Origin.read(run).store(run, "line") == f"sqlite:///{run.parents[2]}/shared.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert Origin.read(run).store(run, "line") == "http://127.0.0.1:9"


def test_a_password_in_the_stores_address_is_neither_kept_nor_shown(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@tracking:5000")
    Origin.here().write(run)
    assert Origin.read(run).uri == "http://tracking:5000"
    assert ui_command("http://someone:secret@tracking:5000") == "open http://tracking:5000"
    assert without_password("http://someone:se/cr@et@tracking:5000") == "http://tracking:5000"
    assert (
        without_password("mysql://tracking/runs?user=me&password=secret")
        == "mysql://tracking/runs?user=***&password=***"
    )
    assert without_password("sqlite:////data/me@work/mlflow.db") == "sqlite:////data/me@work/mlflow.db"


@pytest.mark.parametrize("content", [None, "", "[]", '{"trackers": 1}', '{"later": 1, "trackers": ["mlflow"]}'])
def test_a_run_without_a_legible_origin_has_the_defaults(run: Path, content: str | None) -> None:
    if content is not None:
        (run / "tracking.json").write_text(content)
    assert Origin.read(run) == Origin()


def test_an_unknown_tracker_is_named() -> None:
    with pytest.raises(ConfigError, match="trackers must be mlflow or tensorboard, not wandb"):
        Origin.here(("mlflow", "wandb"))  # type: ignore[arg-type]


def test_artifacts_of_earlier_and_later_runs_are_beside_a_store_that_was_moved(
    empty_store: Path, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    old, moved = tmp_path / "old", tmp_path / "moved"
    old.mkdir()
    shutil.copy(empty_store, old / "mlflow.db")
    MlflowRun(IDENTITY, f"sqlite:///{old}/mlflow.db")
    before = only_run(f"sqlite:///{old}/mlflow.db").info
    artifacts = Path(before.artifact_uri.removeprefix("file://"))
    artifacts.mkdir(parents=True)  # by hand: MLflow's client remembers the folder of a run as long as it lives
    (artifacts / "results.json").write_text("{}")
    old.rename(moved)

    store, later = f"sqlite:///{moved}/mlflow.db", tmp_path / "later.json"
    later.write_text("{}")
    MlflowRun(IDENTITY, store).log_files([later])
    MlflowRun(replace(IDENTITY, run_id="f" * 32, experiment="other"), store).log_files([later])
    for experiment, expected in (("line", ["later.json", "results.json"]), ("other", ["later.json"])):
        run = only_run(store, experiment)
        assert run.info.artifact_uri == f"file://{moved}/mlruns/{run.info.run_id}/artifacts"
        assert [file.path for file in MlflowClient(store).list_artifacts(run.info.run_id)] == expected
    assert not old.exists()


def test_only_locations_of_our_own_follow_a_move(store: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    places = {"bucket": "s3://bucket/mlruns", "own": f"file://{tmp_path}/artifacts"}
    client = MlflowClient(store)
    for name, place in places.items():
        client.create_experiment(name, artifact_location=place)
    follow_a_move(store)
    found = {each.name: each.artifact_location for each in client.search_experiments()}
    assert {name: found[name] for name in places} == places


def test_the_printed_command_works_in_a_shell_without_this_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = f"-m mlflow ui --backend-store-uri 'sqlite:///{tmp_path}/my runs.db'"
    assert ui_command(f"sqlite:///{tmp_path}/my runs.db") == f"{sys.executable} {options}"
    monkeypatch.chdir(Path(sys.prefix).parent)
    python = Path(sys.executable).relative_to(Path.cwd())
    assert ui_command(f"sqlite:///{tmp_path}/my runs.db") == f"{python} {options}"
