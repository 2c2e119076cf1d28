"""A whole small experiment, as a user runs it: real MetaWorld, real Ray, real MLflow."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from ript_ray.rl.dynamic_sampling import REJECTIONS, Verdict
from ript_ray.runs import checkpoint
from ript_ray.runs.rollout_log import read_groups
from ript_ray.runs.run_dir import RunDir
from ript_ray.tracking.metrics_log import read_metrics
from ript_ray.tracking.mlflow_run import find_run
from tests.commands import QUICKSTART, RIPT_RAY, environment, only_folder, quickstart_here, ript_ray_here, run
from tests.tracked import only_run

pytestmark = [pytest.mark.ray, pytest.mark.sim, pytest.mark.cli]

POST_TRAINING = (
    *("--tasks", "button-press-topdown-v3", "window-open-v3"),
    *("--sampling.batch-rollouts", "16", "--sampling.contexts-per-task", "6"),
    *("--evaluation.contexts-per-task", "6", "--evaluation.batch-size", "3"),
    *("--num-updates", "3", "--checkpoint-every", "1", "--max-steps", "100", "--name", "small"),
)
SMALL = (*POST_TRAINING, "--sft.autoencoder.num-steps", "150", "--sft.prior.num-steps", "80")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Return the working directory of the experiment, its run folder and its output."""
    home = tmp_path_factory.mktemp("home")
    result = run(*QUICKSTART, *SMALL, "--view", "lines", cwd=home)
    assert result.returncode == 0, result.stdout + result.stderr
    folder = only_folder(home / "runs" / "small")
    assert "Traceback" not in result.stdout + result.stderr
    return home, folder, result.stdout


def test_the_results_are_complete_and_consistent(finished: tuple[Path, Path, str]) -> None:
    _, folder, printed = finished
    results = json.loads((folder / "results.json").read_text())
    for when in ("before", "after"):
        rates = [results[when], *results[when]["per_task"].values()]
        assert [rate["num_rollouts"] for rate in rates] == [12, 6, 6]
        for rate in rates:
            assert 0 <= rate["low"] <= rate["success_rate"] <= rate["high"] <= 1
        assert f"{100 * results[when]['success_rate']:.1f} [{100 * results[when]['low']:.1f}" in printed
    rejected = results["groups_rejected"]
    assert set(rejected) == {str(verdict) for verdict in REJECTIONS}
    assert results["groups_accepted"] == 3 * 2
    assert results["num_rollouts"] == 8 * (results["groups_accepted"] + sum(rejected.values()))
    assert results["env_steps"] > 0
    assert results["wall_s"] > 0
    assert results["demonstrations"] == "scripted"
    assert "demonstrations: scripted, by an expert that sees the simulator's state" in printed
    assert "| demonstrations | scripted |" in folder.joinpath("model-card.md").read_text()
    assert "update 2, success" in printed


def test_the_folder_holds_configuration_versions_metrics_curve_and_checkpoints(
    finished: tuple[Path, Path, str],
) -> None:
    _, folder, _ = finished
    assert folder.name.endswith("-seed0")
    config = json.loads((folder / "config.json").read_text())
    assert config["sampling"]["batch_rollouts"] == 16
    versions = json.loads((folder / "versions.json").read_text())
    assert {"python", "torch", "ray", "metaworld", "commit"} <= versions.keys()
    points = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [point["update"] for point in points if "ppo/loss" in point["metrics"]] == [1, 2, 3]
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names[:2] == ["autoencoder-0000150", "prior-0000080"]
    assert names[2:] == ["update-00000", "update-00002", "update-00003"], "the newest two, and the first"
    first, last = (checkpoint.load(folder / "checkpoints" / name).arrays for name in (names[2], names[-1]))
    changed = {name for name in first if (first[name] != last[name]).any()}
    assert changed
    assert all(name.startswith("policy_prior.") for name in changed), "only the prior trains"


def test_evaluating_the_checkpoint_on_another_number_of_actors_reproduces_the_runs_results(
    finished: tuple[Path, Path, str],
) -> None:
    home, folder, _ = finished
    arguments = ("evaluate", str(folder), "--out", "again.json", "--cluster.num-actors", "1")
    result = ript_ray_here(*arguments, cwd=home)
    assert result.returncode == 0, result.stdout + result.stderr
    again = json.loads((home / "again.json").read_text())
    after = json.loads((folder / "results.json").read_text())["after"]
    assert {name: again[name] for name in after} == after


def test_a_rollout_of_an_actor_is_replayed_exactly_and_filmed(finished: tuple[Path, Path, str]) -> None:
    home, folder, _ = finished
    records = read_groups(folder / "groups.jsonl")
    results = json.loads((folder / "results.json").read_text())
    assert sum(len(record.successes) for record in records) == results["num_rollouts"]
    record = next(record for record in reversed(records) if record.verdict is Verdict.ACCEPTED)
    member = record.successes.index(1)
    arguments = ("replay", str(folder), "--group", str(record.group), "--member", str(member))
    result = run(*RIPT_RAY, *arguments, cwd=home)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"success after {record.num_steps[member]} steps, as recorded" in result.stdout
    video = folder / "videos" / f"group-{record.group:05d}-member-{member}.gif"
    assert video.read_bytes().startswith(b"GIF8")
    again = run(*RIPT_RAY, *arguments, cwd=home)
    assert again.returncode == 1
    assert "exists already; nothing is overwritten" in again.stderr


def test_one_process_without_ray_gives_bitwise_the_same_weights(
    finished: tuple[Path, Path, str], tmp_path: Path
) -> None:
    result = quickstart_here(*SMALL, "--cluster.in-process", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    folder = only_folder(tmp_path / "runs" / "small")
    for update in (0, 2, 3):
        name = Path("checkpoints") / f"update-{update:05d}" / "policy.safetensors"
        assert (folder / name).read_bytes() == (finished[1] / name).read_bytes()


def test_mlflow_has_the_run_in_its_default_store(finished: tuple[Path, Path, str]) -> None:
    from mlflow import MlflowClient

    home, folder, printed = finished
    store = f"sqlite:///{home}/mlflow.db"
    client = MlflowClient(store)
    run_info = find_run(client, "small", RunDir(folder).run_id)
    assert run_info.info.run_name.startswith("seed0 name=small tasks=button-press-topdown-v3,window-open-v3 ")
    assert run_info.data.tags["mlflow.note.content"].startswith("Does RIPT lift a policy that saw one demonstration")
    assert run_info.data.tags["mlflow.source.name"] == "python -m experiments.quickstart"
    assert f"tracking: MLflow, {store}, experiment small" in printed
    assert f"-m mlflow ui --backend-store-uri {store}" in printed
    assert run_info.data.params["ppo.num_iterations"]
    for name in ("train/success_rate", "by_env_steps/train/success_rate", "by_wall_s/train/success_rate"):
        assert len(client.get_metric_history(run_info.info.run_id, name)) == 3


def stop_after_first_update(start: Path, home: Path) -> tuple[Path, int]:
    """Start the same post-training and terminate it once update 1 is reported; returns run folder and exit code."""
    command = [*QUICKSTART, *POST_TRAINING, "--stages", "ript", "--start-from", str(start), "--view", "lines"]
    with subprocess.Popen(command, cwd=home, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("update 1,"):
                break
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=600)
    folder = only_folder(home / "runs" / "small")
    return folder, code


def test_a_terminated_run_exits_cleanly_and_is_resumed_to_the_same_weights_and_results(
    finished: tuple[Path, Path, str], tmp_path: Path
) -> None:
    _, undisturbed, _ = finished
    folder, code = stop_after_first_update(undisturbed / "checkpoints" / "update-00000", tmp_path)
    assert code == 130
    newest = checkpoint.latest_valid(folder).folder
    assert newest.name >= "update-00001"
    store = f"sqlite:///{tmp_path}/mlflow.db"
    assert only_run(store, "small").info.status == "KILLED"
    assert not (folder / "results.json").exists()
    result = run(*RIPT_RAY, "resume", str(folder), "--cluster.num-actors", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    last = Path("checkpoints") / "update-00003"
    for name in ("policy.safetensors", "learner.safetensors"):
        assert (folder / last / name).read_bytes() == (undisturbed / last / name).read_bytes()
    figures, expected = (json.loads((path / "results.json").read_text()) for path in (folder, undisturbed))
    for name in ("before", "after", "env_steps", "num_rollouts", "groups_accepted", "groups_rejected"):
        assert figures[name] == expected[name], name
    groups, groups_expected = (
        sorted((path / "groups.jsonl").read_text().splitlines()) for path in (folder, undisturbed)
    )
    assert groups == groups_expected
    for update in (1, 2, 3):
        kept = Path("weights") / f"update-{update:05d}.safetensors"
        assert (folder / kept).read_bytes() == (undisturbed / kept).read_bytes()
    points = read_metrics(folder / "metrics.jsonl")
    assert [point.update for point in points if point.stage == "ript"] == [0, 1, 2, 3, 3]

    assert only_run(store, "small").info.status == "FINISHED"

    again = ript_ray_here("resume", str(folder), cwd=tmp_path)
    assert again.returncode == 1
    assert "has finished: there is nothing to resume" in again.stderr


def test_a_search_without_mixed_groups_explains_why_it_ends_and_keeps_the_weights(tmp_path: Path) -> None:
    hopeless = ("--tasks", "pick-place-v3", "--max-steps", "150", "--sampling.max-uniform-groups", "3")
    untrained = ("--sft.autoencoder.num-steps", "1", "--sft.prior.num-steps", "1")
    result = quickstart_here(*SMALL, *hopeless, *untrained, "--cluster.in-process", cwd=tmp_path)
    assert result.returncode == 1
    assert "the policy never succeeds (3 groups in a row taught nothing: 0 all solved, 3" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    folder = only_folder(tmp_path / "runs" / "small")
    results = json.loads((folder / "results.json").read_text())
    assert "never succeeds" in results["stopped_early"]
    assert results["before"] == results["after"]
    assert results["groups_rejected"]["all_failed"] >= 3
    assert results["num_rollouts"] == 8 * results["groups_rejected"]["all_failed"]
    assert checkpoint.load(checkpoint.find(folder)).experiment.tasks == ("pick-place-v3",)
