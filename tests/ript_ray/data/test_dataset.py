"""Datasets of the supervised stages and of contexts: sources, selection, render settings."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from ript_envs.metaworld.benchmark import MetaWorld
from ript_ray.config.data import Demonstrations
from ript_ray.config.experiment import Experiment
from ript_ray.config.rl import Sampling
from ript_ray.config.serialization import read_experiment, to_json
from ript_ray.data.contexts import held_out_contexts, training_contexts
from ript_ray.data.dataset import SupervisedDataset, choose, load_dataset, open_source
from ript_ray.data.hdf5 import find_file, read_demonstrations
from ript_ray.data.recording import Plan, files_of, record_files
from ript_ray.errors import ConfigError
from ript_ray.pipeline import run_experiment
from ript_ray.policies.quest.config import QuestConfig
from ript_ray.runtime.cluster import Cluster
from ript_ray.tracking.console import View
from ript_ray.tracking.logs import ViewMode
from tests.conftest import TINY_QUEST
from tests.ript_ray.data.test_contexts import write_contexts

TASKS = ("reach-v3", "faucet-open-v3")
SEEING = QuestConfig(cameras=("corner_rgb",), sensors=("robot_states",), chunk_length=8, num_executed=8)
FAST = MetaWorld(rendering="fast", image_size=32)
HERE = Cluster(in_process=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four demonstrations of each task, with images."""
    out = tmp_path_factory.mktemp("data")
    plan = Plan(
        FAST.with_cameras(("corner_rgb",)),
        num_episodes=4,
        action_noise=0.1,
        max_steps=120,
        seed=0,
    )
    record_files(plan, files_of(FAST, out, TASKS), HERE)
    return out


def collect(settings: Demonstrations) -> SupervisedDataset:
    return load_from(FAST, settings)


def load_from(benchmark: MetaWorld, settings: Demonstrations) -> SupervisedDataset:
    return load_dataset(
        benchmark, TASKS, settings=settings, policy=SEEING, cameras=SEEING.cameras, max_steps=120, seed=0
    )


@pytest.mark.sim
def test_demonstrations_from_files_equal_those_recorded_at_the_start(folder: Path) -> None:
    settings = Demonstrations(num_per_task=2, num_held_out=1, action_noise=0.1)
    recorded, read = collect(settings), collect(replace(settings, folder=folder))
    for one, other in ((recorded.training, read.training), (recorded.held_out, read.held_out)):
        assert one is not None
        assert other is not None
        assert one.instructions == other.instructions
        np.testing.assert_array_equal(one.chunks_WCA, other.chunks_WCA)
        for name in ("corner_rgb", "robot_states"):
            np.testing.assert_array_equal(one.observations[name], other.observations[name])
    assert set(read.training.observations) == {"corner_rgb", "robot_states"}


@pytest.mark.sim
def test_images_rendered_with_other_settings_than_the_benchmarks_are_refused(folder: Path) -> None:
    settings = Demonstrations(folder=folder, num_per_task=2)
    for other, message in (
        (replace(FAST, rendering="full"), "rendering fast, but benchmark.rendering is full"),
        (replace(FAST, image_size=64), "image-size 32, but benchmark.image-size is 64"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_from(other, settings)


@pytest.mark.sim
def test_images_beyond_the_memory_limit_are_read_from_their_files_on_demand(folder: Path) -> None:
    settings = Demonstrations(folder=folder, num_per_task=4)
    whole = collect(settings).training
    stored = collect(replace(settings, max_memory_bytes=1000)).training
    images = stored.observations["corner_rgb"]
    assert not isinstance(images, np.ndarray)
    assert isinstance(stored.observations["robot_states"], np.ndarray)
    assert len(images) == len(whole.instructions)
    rows = torch.from_numpy(np.random.default_rng(0).integers(len(images), size=50))
    for one, other in zip(whole.observations_at(rows).values(), stored.observations_at(rows).values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_spread_selection_is_even_as_in_the_authors_code_and_held_out_demonstrations_are_others() -> None:
    settings = Demonstrations(num_per_task=5, selection="spread", num_held_out=3)
    assert choose(50, settings, where=Path("x")) == ([0, 12, 24, 36, 49], [1, 2, 3])
    assert choose(50, replace(settings, selection="first"), where=Path("x")) == ([0, 1, 2, 3, 4], [5, 6, 7])
    assert choose(8, replace(settings, selection="first"), where=Path("x"))[1] == [5, 6, 7]
    with pytest.raises(ConfigError, match=r"x contains 7 demonstrations, fewer than .*num-per-task 5 and .*held-out 3"):
        choose(7, settings, where=Path("x"))


def experiment(folder: Path | None = None, **sampling: Any) -> Experiment:
    return Experiment(
        "small",
        TASKS,
        policy=TINY_QUEST,
        demos=Demonstrations(folder=folder, num_per_task=3, num_held_out=1, action_noise=0.1),
        sampling=Sampling(**{"contexts_per_task": 3, **sampling}),
        max_steps=120,
    )


def states_in(folder: Path, task: str) -> list[tuple[float, ...]]:
    read = read_demonstrations(find_file(folder, f"{task}.hdf5"), instruction="", sensors=())
    return [tuple(each.initial_state) for each in read if each.initial_state is not None]


@pytest.mark.sim
def test_contexts_come_from_demonstrations_a_file_or_the_seed_and_may_be_perturbed(
    folder: Path, tmp_path: Path
) -> None:
    sampled = training_contexts(experiment())
    shown = training_contexts(experiment(folder, context_source="demos"))
    assert (
        [context.task for context in sampled] == [context.task for context in shown] == [TASKS[0]] * 3 + [TASKS[1]] * 3
    )
    assert [context.initial_state for context in shown[:3]] == states_in(folder, TASKS[0])[:3]
    assert set(sampled).isdisjoint(shown)
    write_contexts(tmp_path / "contexts.json", shown)
    assert training_contexts(experiment(context_source=tmp_path / "contexts.json")) == shown
    moved = training_contexts(experiment(folder, context_source="demos", context_noise_m=0.01))
    distances = [np.subtract(a.initial_state, b.initial_state) for a, b in zip(moved, shown, strict=True)]
    assert 0 < np.abs(np.concatenate(distances)).max() < 0.05
    with pytest.raises(ConfigError, match=r"contexts-per-task must be at most demos.num-per-task 3, .* not 5"):
        experiment(folder, context_source="demos", contexts_per_task=5)


@pytest.mark.sim
@pytest.mark.parametrize("selection", ["first", "spread"])
def test_contexts_from_demonstrations_are_those_trained_on_and_never_held_out(
    folder: Path, selection: Literal["first", "spread"]
) -> None:
    settings = Demonstrations(folder=folder, num_per_task=2, num_held_out=2, selection=selection)
    small = replace(experiment(folder, context_source="demos", contexts_per_task=2), demos=settings)
    contexts = [context.initial_state for context in training_contexts(small)]
    chosen = [0, 1] if selection == "first" else [0, 3]
    assert contexts == [states_in(folder, task)[index] for task in TASKS for index in chosen]
    source = open_source(FAST, TASKS, settings=settings, sensors=("state",), cameras=(), max_steps=120, seed=0)
    trained, held_out = zip(*map(source.read, TASKS), strict=True)
    assert contexts == [tuple(each.initial_state) for task in trained for each in task]
    assert not set(contexts) & {tuple(each.initial_state) for task in held_out for each in task}
    one_each = replace(small, sampling=replace(small.sampling, contexts_per_task=1))
    assert [context.initial_state for context in training_contexts(one_each)] == contexts[::2]


@pytest.mark.sim
def test_recorded_demonstrations_give_the_contexts_that_their_files_would_give(folder: Path) -> None:
    recorded = training_contexts(experiment(context_source="demos"))
    assert recorded == training_contexts(experiment(folder, context_source="demos"))


@pytest.mark.sim
def test_a_run_from_before_the_selection_keeps_its_contexts_and_a_new_one_says_how_to_choose_them(
    folder: Path, tmp_path: Path
) -> None:
    spread = Demonstrations(folder=folder, num_per_task=2, selection="spread")
    old = replace(experiment(context_source=folder, contexts_per_task=2), demos=spread)
    contexts = [context.initial_state for context in training_contexts(old)]
    assert contexts == [state for task in TASKS for state in states_in(folder, task)[:2]], "the first, as before"
    (tmp_path / "config.json").write_text(to_json(old))
    assert read_experiment(tmp_path / "config.json") == old
    with pytest.raises(ConfigError, match=r"use --demos.folder .* --sampling.context-source demos"):
        run_experiment(old, HERE, runs=tmp_path / "runs", view=View(ViewMode.QUIET, 1))
    assert not (tmp_path / "runs").exists()


def test_the_demonstrations_as_source_of_contexts_are_read_back_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(to_json(experiment(context_source="demos")))
    assert read_experiment(tmp_path / "config.json") == experiment(context_source="demos")


@pytest.mark.sim
def test_contexts_that_are_held_out_are_refused_for_training(tmp_path: Path) -> None:
    write_contexts(tmp_path / "contexts.json", held_out_contexts(experiment()))
    wrong = experiment(context_source=tmp_path / "contexts.json")
    with pytest.raises(ConfigError, match=r"context-source: 6 of its contexts are among the held-out ones"):
        run_experiment(wrong, HERE, runs=tmp_path / "runs", view=View(ViewMode.QUIET, 1))
    assert not (tmp_path / "runs").exists()
