"""A benchmark and a policy from outside the package run the whole pipeline, without an edit inside it."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from ript_ray.storage.hashed_dir import load_arrays
from tests.commands import RIPT_RAY, ROOT, environment, only_folder, run

pytestmark = [pytest.mark.ray, pytest.mark.cli]

EXAMPLE = ROOT / "experiments" / "extending.py"
LAUNCH = (*RIPT_RAY[:1], "-m", "experiments.extending")
PLUGINS = ("--plugin", "experiments.extending:Line", "experiments.extending:LaplaceConfig")
SMALL = (
    *("--num-updates", "4", "--checkpoint-every", "1", "--keep-checkpoints", "all"),
    *("--evaluation.contexts-per-task", "10"),
)
HERE = ("--cluster.in-process",)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def finished(home: Path) -> Path:
    """A run on Ray, supervised stage and RIPT."""
    result = run(*LAUNCH, *SMALL, "--cluster.num-actors", "2", cwd=home)
    assert result.returncode == 0, result.stdout + result.stderr
    return only_folder(home / "runs" / "extending")


def test_the_example_is_short_enough_to_read() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 150


def test_checkpoints_hold_what_changes_and_not_the_base(finished: Path) -> None:
    names = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert names == ["regression-0000150", *(f"update-{update:05d}" for update in range(5))]
    arrays = load_arrays(finished / "checkpoints" / "update-00004" / "policy.safetensors")
    assert sorted(arrays) == ["log_scale", "mean.bias", "mean.weight"]


def test_the_run_is_in_mlflow_with_its_kinds(finished: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished.parents[2]}/mlflow.db")
    experiment = client.get_experiment_by_name("extending")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.data.params["policy.kind"], found.data.params["benchmark.kind"]) == ("laplace", "line")
    assert found.info.status == "FINISHED"


def test_evaluating_and_comparing_name_the_kinds_by_plugin(finished: Path, home: Path) -> None:
    result = run(*RIPT_RAY, "evaluate", str(finished), "--out", "again.json", *HERE, *PLUGINS, cwd=home)
    assert result.returncode == 0, result.stdout + result.stderr
    results, again = (json.loads(path.read_text()) for path in (finished / "results.json", home / "again.json"))
    assert again["outcomes"] == results["after"]["outcomes"]
    first = str(finished / "checkpoints" / "update-00000")
    result = run(*RIPT_RAY, "compare", first, str(finished), "--out", "pair.json", *HERE, *PLUGINS, cwd=home)
    assert result.returncode == 0, result.stdout + result.stderr
    pair = json.loads((home / "pair.json").read_text())
    assert [pair[name]["outcomes"] for name in "AB"] == [results[when]["outcomes"] for when in ("before", "after")]


def test_a_run_that_mlflow_did_not_see_prints_the_line_that_uploads_it(home: Path) -> None:
    small = (*SMALL, "--num-updates", "1", "--sft.regression.num-steps", "20", "--name", "unseen", *HERE)
    ended = run("env", "MLFLOW_TRACKING_URI=http://127.0.0.1:9", *LAUNCH, *small, cwd=home)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (line,) = re.findall(r"upload it later with: ript-ray (.*)", ended.stdout)
    assert line.endswith(" ".join(PLUGINS))
    uploaded = run("env", f"MLFLOW_TRACKING_URI=sqlite:///{home / 'later.db'}", *RIPT_RAY, *shlex.split(line), cwd=home)
    assert "points are in the tracking store" in uploaded.stdout, uploaded.stdout + uploaded.stderr


def test_a_rollout_is_replayed(finished: Path, home: Path) -> None:
    result = run(*RIPT_RAY, "replay", str(finished), "--group", "3", "--member", "1", *PLUGINS, cwd=home)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "as recorded" in result.stdout
    assert "no video: the line has no camera" in result.stdout


def test_a_file_alone_makes_no_kind_known(finished: Path, home: Path) -> None:
    result = run(*RIPT_RAY, "evaluate", str(finished), *HERE, cwd=home)
    assert result.returncode == 1
    assert "benchmark.kind 'line' is unknown; known are libero, metaworld" in result.stderr
    assert "--plugin MODULE:NAME" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_interrupted_run_is_resumed_to_the_same_weights(finished: Path, home: Path) -> None:
    command = [*LAUNCH, *SMALL, "--name", "interrupted", *HERE]
    killed = Path(home, "killer.py")
    killed.write_text(
        "import os, runpy, signal, sys\n"
        "def kill(event, arguments):\n"
        "    if event == 'os.mkdir' and '.update-00003.unfinished' in str(arguments[0]):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(kill)\n"
        "runpy.run_module('experiments.extending', run_name='__main__', alter_sys=True)\n"
    )
    ended = subprocess.run(
        [command[0], str(killed), *command[3:]], cwd=home, env=environment(), capture_output=True, check=False
    )
    assert ended.returncode == -9, ended.stderr
    folder = only_folder(home / "runs" / "interrupted")
    result = run(*RIPT_RAY, "resume", str(folder), *HERE, *PLUGINS, cwd=home)
    assert result.returncode == 0, result.stdout + result.stderr
    name = "checkpoints/update-00004/policy.safetensors"
    assert (folder / name).read_bytes() == (finished / name).read_bytes(), "also: in one process as on Ray"


def test_noise_that_the_benchmark_cannot_make_is_refused_before_the_run_exists(tmp_path: Path) -> None:
    result = run(*LAUNCH, *SMALL, *HERE, "--sampling.rollout-noise-m", "0.1", cwd=tmp_path)
    assert result.returncode == 2
    assert "line cannot move the objects of" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()
