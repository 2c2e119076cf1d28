"""LIBERO's official demonstrations and init states as contexts and training data."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ript_envs.libero.benchmark import CAMERAS, STATE_DIMS, Libero
from ript_envs.metaworld.benchmark import MetaWorld
from ript_ray.config.data import Demonstrations
from ript_ray.config.experiment import Experiment
from ript_ray.config.rl import Evaluation, Sampling
from ript_ray.config.serialization import read_experiment, to_json
from ript_ray.data.contexts import held_out_contexts, require_untrained, training_contexts
from ript_ray.data.dataset import load_dataset, open_source
from ript_ray.errors import ConfigError, RiptError
from ript_ray.policies.quest.config import QuestConfig
from ript_ray.seeding import Split
from tests.conftest import TINY_QUEST

OBJECT = Libero(suite="libero_object")
TASK = OBJECT.tasks[0]
SENSORS = {"ee_pos": 3, "ee_ori": 3, "ee_states": 6, "gripper_states": 2, "joint_states": 7}
POLICY = QuestConfig(cameras=CAMERAS, sensors=tuple(STATE_DIMS), chunk_length=4, num_executed=4)


def write_official(folder: Path, *, num_demos: int = 50, num_steps: int = 3, num_states: int = 110) -> Path:
    """Write a file in LIBERO's own layout: every array and attribute that its collection script writes."""
    path = folder / "libero_object" / f"{TASK}_demo.hdf5"
    path.parent.mkdir(parents=True)
    numbers = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        env_args = {"type": 1, "env_name": "Libero_Floor_Manipulation", "problem_name": "x", "bddl_file": "x.bddl"}
        data.attrs["env_args"] = json.dumps({**env_args, "env_kwargs": {}})
        data.attrs["problem_info"] = json.dumps({"language_instruction": "pick up the alphabet soup"})
        data.attrs.update({"bddl_file_name": "x.bddl", "num_demos": num_demos, "total": num_demos * num_steps})
        for index in range(num_demos):
            demo = data.create_group(f"demo_{index}")
            demo.attrs.update({"num_samples": num_steps, "model_file": "<mujoco/>", "init_state": np.zeros(num_states)})
            demo["actions"] = numbers.uniform(-1, 1, (num_steps, 7))
            demo["states"] = np.full((num_steps, num_states), float(index))
            demo["robot_states"] = numbers.normal(size=(num_steps, 9))
            demo["rewards"] = demo["dones"] = np.eye(num_steps, dtype=np.uint8)[-1]
            for name, size in SENSORS.items():
                demo[f"obs/{name}"] = numbers.normal(size=(num_steps, size))
            for name in CAMERAS:
                demo[f"obs/{name}"] = numbers.integers(0, 256, (num_steps, 128, 128, 3), np.uint8)
    return path


def experiment(folder: Path, **changes: Any) -> Experiment:
    spread = Demonstrations(folder=folder, num_per_task=5, selection="spread")
    sampling = Sampling(context_source="demos", contexts_per_task=5)
    whole = Experiment("official", (TASK,), benchmark=OBJECT, policy=POLICY, demos=spread, sampling=sampling)
    return replace(whole, **changes)


@pytest.mark.sim
def test_the_authors_few_shot_contexts_are_the_first_states_of_evenly_spaced_demonstrations(tmp_path: Path) -> None:
    write_official(tmp_path)
    contexts = training_contexts(experiment(tmp_path))
    assert [context.initial_state for context in contexts] == [(float(index),) * 110 for index in (0, 12, 24, 36, 49)]
    assert {context.instruction for context in contexts} == {"pick up the alphabet soup and place it in the basket"}


@pytest.mark.sim
def test_official_demonstrations_become_windows_as_they_are_and_frames_are_read_when_needed(tmp_path: Path) -> None:
    path = write_official(tmp_path, num_demos=2)
    settings = Demonstrations(folder=tmp_path, num_per_task=2, max_memory_bytes=0)
    loaded = load_dataset(OBJECT, (TASK,), settings=settings, policy=POLICY, cameras=CAMERAS, max_steps=600, seed=0)
    observations = loaded.training.observations
    assert set(observations) == {*CAMERAS, *STATE_DIMS}
    with h5py.File(path) as file:
        demo = file["data/demo_1"]
        np.testing.assert_array_equal(loaded.training.chunks_WCA[3, :3], demo["actions"][:].astype(np.float32))
        for name in STATE_DIMS:
            expected = demo[f"obs/{name}"][:].astype(np.float32)
            np.testing.assert_array_equal(observations[name][np.arange(3, 6)], expected)
            assert np.asarray(observations[name]).dtype == np.float32
        for name in CAMERAS:
            assert not isinstance(observations[name], np.ndarray)
            np.testing.assert_array_equal(observations[name][np.array([4])], demo[f"obs/{name}"][1:2])


def shorten(demo: h5py.Group) -> None:
    del demo["obs/ee_pos"]
    demo["obs/ee_pos"] = np.zeros((2, 3))


def flatten_images(demo: h5py.Group) -> None:
    del demo["obs/agentview_rgb"]
    demo["obs/agentview_rgb"] = np.zeros((3, 128 * 128 * 3), np.uint8)[:, :, np.newaxis]


def name_actions(demo: h5py.Group) -> None:
    del demo["actions"]
    demo["actions"] = np.full((3, 7), b"x")


def widen_states(demo: h5py.Group) -> None:
    del demo["states"]
    demo["states"] = np.zeros((3, 111))


DAMAGE: dict[str, tuple[Callable[[h5py.Group], None], str]] = {
    "fewer observations than actions": (shorten, r"demo_0/obs/ee_pos has 2 rows, fewer than the 3 needed"),
    "images of another shape": (flatten_images, r"agentview_rgb must be .*, not uint8 of shape \(3, 49152, 1\)"),
    "actions that are no numbers": (name_actions, r"demo_0/actions must be rows of numbers \(T, n\)"),
    "states of another task": (widen_states, r"its states have the shape \(111,\), not \(110,\)"),
}


@pytest.mark.sim
@pytest.mark.parametrize("case", DAMAGE)
def test_a_file_with_other_shapes_or_types_is_refused_by_name(case: str, tmp_path: Path) -> None:
    path = write_official(tmp_path, num_demos=1)
    spoil, message = DAMAGE[case]
    with h5py.File(path, "r+") as file:
        spoil(file["data/demo_0"])
    source = open_source(
        OBJECT,
        (TASK,),
        settings=Demonstrations(folder=tmp_path, num_per_task=1),
        sensors=POLICY.sensors,
        cameras=CAMERAS,
        max_steps=600,
        seed=0,
    )
    with pytest.raises(RiptError, match=message) as caught:
        source.read(TASK)
    assert path.name in str(caught.value)


@pytest.mark.sim
def test_test_contexts_are_the_first_init_states_of_the_benchmark(tmp_path: Path) -> None:
    held_out = Evaluation(context_source="benchmark", contexts_per_task=3, validation_contexts_per_task=1)
    evaluated = experiment(tmp_path, evaluation=held_out)
    contexts = held_out_contexts(evaluated)
    np.testing.assert_array_equal([context.initial_state for context in contexts], OBJECT.evaluation_states(TASK)[:3])
    validation = held_out_contexts(evaluated, Split.VALIDATION)
    assert len(validation) == 1
    assert validation[0].initial_state not in {tuple(state) for state in OBJECT.evaluation_states(TASK).tolist()}
    (tmp_path / "config.json").write_text(to_json(evaluated))
    assert read_experiment(tmp_path / "config.json") == evaluated


@pytest.mark.sim
def test_demonstrations_from_the_benchmarks_init_states_are_refused(tmp_path: Path) -> None:
    path = write_official(tmp_path, num_demos=5)
    with h5py.File(path, "r+") as file:
        file["data/demo_3/states"][0] = OBJECT.evaluation_states(TASK)[7].astype(np.float32)
    evaluated = experiment(tmp_path, evaluation=Evaluation(context_source="benchmark"))
    with pytest.raises(ConfigError, match="1 of its contexts are among the held-out ones"):
        require_untrained(held_out_contexts(evaluated), evaluated)


@pytest.mark.sim
def test_more_test_contexts_than_the_benchmark_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"contexts-per-task must be at most 50, .* that come with LIBERO, not 51"):
        held_out_contexts(experiment(tmp_path, evaluation=Evaluation(context_source="benchmark", contexts_per_task=51)))


def test_a_benchmark_without_initial_states_of_its_own_draws_them() -> None:
    wrong = Experiment(
        "drawn", MetaWorld().tasks[:1], policy=TINY_QUEST, evaluation=Evaluation(context_source="benchmark")
    )
    with pytest.raises(ConfigError, match="context-source must be drawn: MetaWorld comes with no initial states"):
        held_out_contexts(wrong)
