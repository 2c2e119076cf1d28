"""Every preset of every launcher, its policy at full size, through all of its stages: one tiny step of each."""

import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import extending, openvla_oft_small, pixels, quest_ml45, quickstart
from ript_ray.config.experiment import Experiment
from ript_ray.data.demonstrations import ExpertEpisode
from ript_ray.data.hdf5 import DemonstrationWriter
from ript_ray.pipeline import run_experiment
from ript_ray.policies.supervised import SFTConfig, SupervisedStage
from ript_ray.runs.model_dir import Card, Model, Provenance, save_model
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.runtime.cluster import Cluster
from ript_ray.tracking.console import View
from ript_ray.tracking.logs import ViewMode
from tests.commands import ROOT

LAUNCHERS_OF_LIBERO = ("quest_libero", "libero_object", "openvla_oft_libero")

PRESETS = {
    "quickstart": quickstart.EXPERIMENT,
    "pixels": pixels.EXPERIMENT,
    "extending": extending.EXPERIMENT,
    "openvla_oft_small": openvla_oft_small.EXPERIMENT,
    **quest_ml45.ALL_STAGES,
}


def tiny(experiment: Experiment, demonstrations: Path) -> Experiment:
    """The same policy and stages, with one task, two short rollouts, and one optimizer step per stage."""
    return replace(
        experiment,
        tasks=experiment.tasks[:1],
        demos=replace(experiment.demos, folder=demonstrations, num_per_task=1, num_held_out=1),
        sft=of_one_step(experiment.sft),
        sampling=replace(experiment.sampling, group_size=2, batch_rollouts=2, contexts_per_task=1, dynamic=False),
        ppo=replace(experiment.ppo, num_iterations=1, minibatch_rollouts=2),
        evaluation=replace(experiment.evaluation, contexts_per_task=1),
        num_updates=1,
        max_steps=16,
        keep_weights=False,
    )


def of_one_step(sft: Any) -> SFTConfig:
    stages = {each.name: getattr(sft, each.name) for each in fields(sft) if each.type is SupervisedStage}
    one_step = {"num_steps": 1, "num_epochs": None, "schedule_epochs": None, "batch_size": 2}
    changed: SFTConfig = replace(sft, **{name: replace(stage, **one_step) for name, stage in stages.items()})
    return changed


def write_demonstrations(experiment: Experiment, folder: Path) -> None:
    """Write two demonstrations of the first task, of eight random steps, with all sensors and cameras."""
    benchmark, task, generator = experiment.benchmark, experiment.tasks[0], np.random.default_rng(0)
    spec = benchmark.spec
    path = folder / benchmark.demonstration_path(task).name
    writer = DemonstrationWriter(path, task, recipe={"benchmark": {}}, versions={})
    for attempt in range(2):
        states = {name: generator.normal(size=(9, dim)).astype(np.float32) for name, dim in spec.state_dims.items()}
        images = {name: generator.integers(0, 256, (9, *shape), np.uint8) for name, shape in spec.image_shapes.items()}
        actions = generator.uniform(-1, 1, (8, spec.action_dim)).astype(np.float32)
        start = benchmark.draw_initial_state(task, (attempt,))
        writer.add(ExpertEpisode(start, states | images, actions, True), attempt=attempt, is_truncated=False)
    writer.finish()


def write_start(experiment: Experiment, folder: Path) -> Path:
    """Write a model of random weights, for presets that start from a trained policy."""
    arrays = SavedPolicy.initial(experiment).arrays
    card = Card("random", experiment.policy, experiment.benchmark.spec, (), Provenance("none", "", "none"))
    save_model(folder, Model(card, arrays))
    return folder


@pytest.mark.sim
@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_runs_through_all_of_its_stages_with_its_full_size_policy(name: str, tmp_path: Path) -> None:
    preset = PRESETS[name]
    write_demonstrations(preset, tmp_path / "demonstrations")
    experiment = tiny(preset, tmp_path / "demonstrations")
    if preset.stages != preset.all_stages:
        experiment = replace(experiment, start_from=write_start(preset, tmp_path / "start"))
    assert experiment.policy == preset.policy
    view = View(ViewMode.QUIET, 1)
    results = run_experiment(experiment, Cluster(in_process=True), runs=tmp_path / "runs", view=view)
    assert results.train_result is not None
    assert results.train_result.exhausted is None
    trained = {path.name.rpartition("-")[0] for path in (results.folder / "checkpoints").iterdir()}
    assert trained == {*preset.stages[:-1], "update"}
    assert results.after is not None
    shutil.rmtree(results.folder)  # up to a gigabyte of checkpoints


def test_the_presets_of_a_single_stage_are_those_of_all_stages_except_for_their_names() -> None:
    for name, single in quest_ml45.SINGLE_STAGES.items():
        whole = next(preset for prefix, preset in quest_ml45.ALL_STAGES.items() if name.startswith(prefix))
        assert single == replace(whole, name=single.name, stages=single.stages)
        assert single.stages[0] in whole.stages


def test_every_launcher_is_here_or_in_the_tests_of_libero() -> None:
    launchers = {path.stem for path in (ROOT / "experiments").glob("*.py")} - {"__init__", "sweep"}
    here = {"quickstart", "pixels", "extending", "openvla_oft_small", "quest_ml45"}
    assert launchers == here | {*LAUNCHERS_OF_LIBERO}
