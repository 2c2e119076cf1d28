"""What MLflow has of a run: enough to compare runs, each update once, and how it ended."""

import getpass
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from experiments.extending import EXPERIMENT as EXAMPLE
from ript_ray.api import EvaluationOverrides
from ript_ray.cli.evaluate import compare_checkpoints, evaluate_checkpoint
from ript_ray.config.experiment import Experiment
from ript_ray.config.rl import Evaluation
from ript_ray.errors import ConfigError
from ript_ray.evaluation.video import VideoSettings
from ript_ray.pipeline import resume_experiment, run_experiment
from ript_ray.rl.callbacks import RolloutStats
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.learner import learning_rate_of
from ript_ray.runs import checkpoint
from ript_ray.runs.run_dir import RunDir
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.runs.tracked import tracking_identity
from ript_ray.runs.tracked_evaluation import track_evaluation
from ript_ray.runtime.cluster import Cluster
from ript_ray.tracking.console import View
from ript_ray.tracking.logs import ViewMode
from ript_ray.tracking.mlflow_run import PARENT_TAG, SEEDS_TAG, Identity, MlflowRun
from ript_ray.tracking.store import Origin
from ript_ray.types import GroupSummary
from tests.commands import only_folder
from tests.tracked import doubled_points, events_of, only_run

EXPERIMENT = replace(
    EXAMPLE,
    num_updates=4,
    checkpoint_every=1,
    keep_checkpoints="all",
    sampling=replace(EXAMPLE.sampling, batch_rollouts=16),
    evaluation=Evaluation(contexts_per_task=4),
)
HERE = Cluster(in_process=True)


class Quiet(View):
    """Interrupts the run in the middle of an update, if one is given."""

    def __init__(self, stop_in: int | None = None):
        super().__init__(ViewMode.QUIET, 4)
        self._stop_in = stop_in

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        if stats.update == self._stop_in:
            raise KeyboardInterrupt


def steps(store: str, run: Any, name: str) -> list[int]:
    return [metric.step for metric in MlflowClient(store).get_metric_history(run.info.run_id, name)]


def test_a_run_that_lost_updates_has_each_once_and_all_that_a_comparison_needs(store: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_experiment(
            EXPERIMENT,
            HERE,
            runs=tmp_path / "runs",
            view=Quiet(4),
            label="lost-power",
            base=replace(EXPERIMENT, num_updates=9),
            origin=Origin.here(("mlflow", "tensorboard"), "Does it learn?"),
        )
    path = only_folder(tmp_path / "runs" / "extending")
    interrupted = only_run(store, "extending")
    assert interrupted.info.status == "KILLED"
    for lost in ("update-00002", "update-00003"):
        shutil.rmtree(path / "checkpoints" / lost)
    results = resume_experiment(path, Cluster(in_process=True, max_environments=99), view_of=lambda _: Quiet())

    run = only_run(store, "extending")  # the interrupted one is in the trash
    assert run.info.run_id != interrupted.info.run_id
    assert (run.info.status, path.name[-11:]) == ("FINISHED", "-lost-power")
    assert run.info.run_name == f"seed0-lost-power num-updates=4 {path.name[:15]}"
    assert results.tracking_error is None
    check_each_update_is_there_once(store, path, run)
    check_origin_settings_and_machine_are_there(store, path, run)
    check_results_and_cost_are_those_of_the_folder(store, path, run)
    assert {"config.json", "changed.json", "versions.json", "machine.json"} <= files_of(store, interrupted), (
        "at its start"
    )
    assert files_of(store, run) == {
        *("config.json", "changed.json", "versions.json", "machine.json"),
        *("groups.jsonl", "results.json", "regression.png", "curve.png", "model-card.md"),
    }
    check_evaluations_are_nested(store, path, run)


def files_of(store: str, run: Any) -> set[str]:
    return {file.path for file in MlflowClient(store).list_artifacts(run.info.run_id)}


def check_each_update_is_there_once(store: str, path: Path, run: Any) -> None:
    assert steps(store, run, "train/success_rate") == [1, 2, 3, 4]
    assert steps(store, run, "eval/success_rate") == [0, 4]
    assert doubled_points(store) == []
    events = events_of(path / "tensorboard")
    assert [step for step, _ in events["train/success_rate"]] == [1, 2, 3, 4]
    assert events.keys() == run.data.metrics.keys()


def check_origin_settings_and_machine_are_there(store: str, path: Path, run: Any) -> None:
    params, tags, metrics = run.data.params, run.data.tags, run.data.metrics
    assert (params["cluster.in_process"], params["cluster.max_environments"]) == ("True", "99")
    assert (params["stages"], params["tasks"]) == ("regression ript", "left right")
    assert (tags["changed"], tags["folder"]) == ("num-updates=4", str(path))
    assert (tags["mlflow.note.content"], tags["mlflow.user"]) == ("Does it learn?", getpass.getuser())
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"]) == (Origin.read(path).source, "LOCAL")
    assert tags["mlflow.source.git.commit"] == tags["commit"].removesuffix("+changes")
    experiment = MlflowClient(store).get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert {"machine.host", "machine.processor", "machine.cores", "machine.nodes", "commit", "torch"} <= tags.keys()
    assert metrics["ppo/learning_rate"] == learning_rate_of(EXPERIMENT.ppo, 4)
    assert metrics["memory/driver_bytes"] > 1e7
    assert metrics["train/core_s"] > 0


def check_results_and_cost_are_those_of_the_folder(store: str, path: Path, run: Any) -> None:
    metrics, figures = run.data.metrics, json.loads((path / "results.json").read_text())
    difference = figures["difference"]
    gain = [metrics[f"result/{name}"] for name in ("gain", "gain_low", "gain_high", "p")]
    assert gain == [difference[name] for name in ("difference", "low", "high", "p_value")]
    for when in ("before", "after"):
        rate = [metrics[f"result/{when}{end}"] for end in ("", "_low", "_high")]
        assert rate == [figures[when][name] for name in ("success_rate", "low", "high")]
    points = 100 * difference["difference"]
    cost = pytest.approx(figures["env_steps"] / points) if points > 0 else None
    assert metrics.get("cost/env_steps_per_point") == cost
    accepted = sum(
        metric.value
        for task in EXPERIMENT.tasks
        for metric in MlflowClient(store).get_metric_history(run.info.run_id, f"groups/accepted/{task}")
    )
    assert accepted == figures["groups_accepted"] == 8
    assert f"train/success_rate/{EXPERIMENT.tasks[0]}" in metrics


def check_evaluations_are_nested(store: str, path: Path, run: Any) -> None:
    overrides = EvaluationOverrides(contexts_per_task=2)
    video_settings = VideoSettings()
    assert not evaluate_checkpoint(path, overrides, out=None, videos=None, video_settings=video_settings, cluster=HERE)
    assert not compare_checkpoints(path / "checkpoints" / "update-00000", path, overrides, out=None, cluster=HERE)
    client = MlflowClient(store)
    found = client.search_runs([run.info.experiment_id], f"tags.`{PARENT_TAG}` = '{run.info.run_id}'")
    commands = {each.data.tags["mlflow.source.name"]: each for each in found}
    evaluated, compared = commands["ript-ray evaluate"], commands["ript-ray compare"]
    assert {"eval/success_rate", "eval/success_rate/left", "eval/success_rate_low"} <= evaluated.data.metrics.keys()
    assert steps(store, evaluated, "eval/success_rate") == [4]
    assert evaluated.data.params == {"policy": str(path), "contexts_per_task": "2", "split": "test"}
    rates = [compared.data.metrics[f"compare/{name}"] for name in ("second", "first", "difference")]
    assert rates[0] - rates[1] == pytest.approx(rates[2])
    assert {"compare/p", "compare/difference_low", "compare/difference/left"} <= compared.data.metrics.keys()
    assert compared.data.params["second"] == str(path)
    for command, each in (("evaluate", evaluated), ("compare", compared)):
        assert each.info.status == "FINISHED"
        files = {file.path for file in client.list_artifacts(each.info.run_id)}
        assert files == {f"{command}.json", f"{command}.txt"}


def test_a_store_that_is_down_costs_an_evaluation_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    folder = RunDir.create(tmp_path / "runs", EXPERIMENT)
    track_evaluation("evaluate", folder.path, settings={"split": "test"}, metrics={"eval/success_rate": 0.5}, files={})
    (message,) = caplog.messages[-1:]
    assert message.startswith("tracking: MLflow, http://127.0.0.1:9, takes nothing (MlflowException: ")


def test_a_run_that_never_succeeds_has_failed(store: str, tmp_path: Path) -> None:
    sampling = replace(EXPERIMENT.sampling, max_uniform_groups=3)
    checkpoint.save(tmp_path / "start", SavedPolicy.initial(EXPERIMENT))
    hopeless = replace(
        EXPERIMENT, name="hopeless", stages=("ript",), start_from=tmp_path / "start", max_steps=1, sampling=sampling
    )
    results = run_experiment(hopeless, HERE, runs=tmp_path / "runs", view=Quiet())
    assert results.train_result is not None
    assert "the policy never succeeds" in str(results.train_result.exhausted)
    assert only_run(store, "hopeless").info.status == "FAILED"
    assert json.loads((results.folder / "status.json").read_text()) == {"status": "FAILED"}


def test_a_stage_is_nested_below_the_run_that_it_starts_from_and_long_parameters_are_whole(store: str) -> None:
    first = Identity("a" * 32, "prior", "first", {"tasks": "t" * 13_000, "seed": "0"}, {})
    MlflowRun(first, store)
    MlflowRun(replace(first, run_id="b" * 32, experiment="ript", run="second", parent=("prior", first.run_id)), store)
    parent, child = only_run(store, "prior"), only_run(store, "ript")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    values = [parent.data.params[name] for name in ("tasks", "tasks.part2", "tasks.part3")]
    assert "".join(values) == "t" * 13_000


def test_runs_that_differ_in_their_seeds_alone_are_nested_below_one_run(store: str) -> None:
    tags = {SEEDS_TAG: "5eed"}
    first = Identity("a" * 32, "line", "line-seed0", {"seed": "0"}, tags, group="line")
    MlflowRun(first, store)
    MlflowRun(replace(first, run_id="f" * 32, run="other", tags={SEEDS_TAG: "07e4"}), store)
    client = MlflowClient(store)
    found = client.get_experiment_by_name("line")
    assert found is not None
    experiment = found.experiment_id
    assert len(client.search_runs([experiment])) == 2, "one seed needs no parent"
    for letter in "bc":
        MlflowRun(replace(first, run_id=letter * 32, run=f"line-{letter}"), store)
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    parent = runs["line all seeds"]
    nested = {name for name, run in runs.items() if run.data.tags.get(PARENT_TAG) == parent.info.run_id}
    assert nested == {"line-seed0", "line-b", "line-c"}
    assert parent.info.status == "FINISHED"
    MlflowRun(replace(first, run_id="b" * 32, run="line-b"), store)
    assert len(client.search_runs([experiment])) == 5, "a run that goes on is found again"


def test_a_run_names_its_parent_where_it_starts_from_a_run_or_one_of_its_checkpoints(tmp_path: Path) -> None:
    experiment = Experiment("small", ("reach-v3",))
    folder = RunDir.create(tmp_path, experiment)
    for start in (folder.path, folder.checkpoint(3)):
        started = replace(experiment, stages=("ript",), start_from=start, seed=1)
        child = tracking_identity(RunDir.create(tmp_path, started), started)
        assert child.parent == ("small", folder.run_id)
        assert child.tags["started_from"] == str(folder.path)
    own = tracking_identity(folder, experiment)
    assert own.parent is None
    twin = tracking_identity(folder, replace(experiment, seed=2))
    assert twin.tags["experiment_sha256"] == own.tags["experiment_sha256"] != child.tags["experiment_sha256"]


def test_a_label_is_one_word(tmp_path: Path) -> None:
    experiment = Experiment("small", ("reach-v3",))
    assert RunDir.create(tmp_path, experiment, "lr-3e-5").name.endswith("-seed0-lr-3e-5")
    with pytest.raises(ConfigError, match="label must be one word of letters"):
        RunDir.create(tmp_path, experiment, "two words")
