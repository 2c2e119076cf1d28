"""A small QueST of the LIBERO variant, from demonstrations to the papers' evaluation, in LIBERO's own simulator."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments.quest_libero import paper
from ript_envs.libero.benchmark import Libero
from ript_ray import api
from ript_ray.cli.evaluate_libero import EvaluateLibero
from ript_ray.config.experiment import Experiment
from ript_ray.errors import ConfigError
from ript_ray.pipeline import run_experiment
from ript_ray.policies.quest.policy import QuestPolicy
from ript_ray.policies.quest.presets import published
from ript_ray.runtime.cluster import Cluster
from ript_ray.tracking.console import View
from ript_ray.tracking.logs import ViewMode
from tests.conftest import TINY_QUEST
from tests.experiments.test_presets import tiny, write_demonstrations

HERE = Cluster(in_process=True)
SMALL = Libero(suite="libero_object", image_size=32, rendering="fast", simplified_meshes=True, small_textures=True)
POLICY = replace(
    TINY_QUEST,
    cameras=published("libero").cameras,
    sensors=published("libero").sensors,
    standardize=False,
    task_input="features",
    text_features=512,
    chunk_length=8,
    num_executed=8,
    image_size=32,
    image_channels=4,
    image_width=8,
)


def small_experiment(folder: Path) -> Experiment:
    """The paper's experiment on a suite with everything small; demonstrations and text features are in the folder."""
    experiment = replace(
        paper("object"), benchmark=SMALL, policy=replace(POLICY, text_file=folder / "text.safetensors")
    )
    write_demonstrations(experiment, folder / "demonstrations")
    experiment = tiny(experiment, folder / "demonstrations")
    (instruction,) = experiment.instructions
    save_file({instruction: np.full(512, 0.1, np.float32)}, folder / "text.safetensors")
    return replace(experiment, learner_threads=1)


@pytest.mark.sim
@pytest.mark.usefixtures("store")
def test_three_stages_then_more_updates_and_the_papers_evaluation_without_the_file_of_text_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = small_experiment(tmp_path)
    results = run_experiment(experiment, HERE, runs=tmp_path / "runs", view=View(ViewMode.QUIET, 1))
    assert results.after is not None
    assert {path.name.rpartition("-")[0] for path in (results.folder / "checkpoints").iterdir()} == {
        *("autoencoder", "prior", "update")
    }
    (tmp_path / "text.safetensors").unlink()
    assert api.resume(results.folder, HERE, view="quiet", num_updates=2).after is not None
    policy = api.load_policy(results.folder)
    assert isinstance(policy, QuestPolicy)
    assert list(policy.text_features.vectors) == list(experiment.instructions)

    protocol = EvaluateLibero(
        (results.folder,),
        ("libero_object",),
        horizon="oft",
        tasks=experiment.tasks,
        contexts_per_task=2,
        out=tmp_path / "found.json",
        cluster=HERE,
    )
    assert protocol.run() == 0
    assert "mean of the suites" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())["suites"]["libero_object"]
    assert (found["max_steps"], found["num_rollouts"], found["env_steps"]) == (280, 2, 2 * 280)
    assert (found["benchmark"]["image_size"], found["benchmark"]["simplified_meshes"]) == (32, True)
    with pytest.raises(ConfigError, match="give one policy, or one for each of the suites libero_goal, not 2 policies"):
        EvaluateLibero((results.folder, results.folder), ("libero_goal",)).run()


def test_each_suite_has_the_horizon_and_the_benchmark_of_its_policy(tmp_path: Path) -> None:
    from ript_ray.runs.model_dir import Card, Model, Provenance, save_model
    from ript_ray.runs.saved_policy import SavedPolicy

    experiment = replace(paper("goal"), policy=POLICY)
    card = Card("small", POLICY, experiment.benchmark.spec, (), Provenance("none", "", "none"))
    save_model(tmp_path / "model", Model(card, SavedPolicy.initial(experiment).arrays))
    protocol = EvaluateLibero((tmp_path / "model",), horizon="oft", benchmark_fields=("reset_mode=legacy",))
    hosts = [protocol.experiment(suite, tmp_path / "model") for suite in protocol.suites]
    assert [(host.benchmark, host.max_steps) for host in hosts] == [
        (Libero(suite="libero_goal", reset_mode="legacy"), 300),
        (Libero(suite="libero_spatial", reset_mode="legacy"), 220),
        (Libero(suite="libero_object", reset_mode="legacy"), 280),
        (Libero(suite="libero_10", reset_mode="legacy"), 520),
    ]
    assert {len(host.tasks) for host in hosts} == {10}
    assert {host.evaluation.contexts_per_task for host in hosts} == {50}
    with pytest.raises(ConfigError, match=r"--benchmark\.image-size decides what the policy reads"):
        replace(protocol, benchmark_fields=("image_size=64",)).experiment("libero_goal", tmp_path / "model")
    with pytest.raises(ConfigError, match=r"--benchmark\.suite: the suites are named by --suites"):
        replace(protocol, benchmark_fields=("suite=libero_10",)).run()
    large = EvaluateLibero((tmp_path / "model",), ("libero_90",)).experiment("libero_90", tmp_path / "model")
    assert (len(large.tasks), large.max_steps) == (90, 600)
