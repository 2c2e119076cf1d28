"""`ript-ray demos`: LIBERO's scripted expert, from the command line to a file that our readers and others' take."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from ript_envs.libero.benchmark import CAMERAS, STATE_DIMS, Libero
from ript_ray.data.hdf5 import is_scripted, read_demonstrations
from tests.commands import ript_ray_here
from tests.ript_ray.cli.test_main import text_of

pytestmark = [pytest.mark.cli, pytest.mark.sim]

TASK = "pick_up_the_alphabet_soup_and_place_it_in_the_basket"
SMALL = (
    *("--benchmark.suite", "libero_object", "--benchmark.rendering", "fast", "--benchmark.image-size", "16"),
    *("--benchmark.simplified-meshes", "--benchmark.small-textures", "--max-steps", "250"),
)


def test_a_libero_task_is_recorded_in_the_official_layout_and_marked_as_scripted(tmp_path: Path) -> None:
    options = ("--task", TASK, "--episodes", "1", "--cluster.in-process", *SMALL)
    result = ript_ray_here("demos", "libero", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "scripted expert: success of all attempts" in text_of(result)
    path = tmp_path / "data" / "libero" / "libero_object" / f"{TASK}_demo.hdf5"
    with h5py.File(path) as file:
        data, demo = file["data"], file["data/demo_0"]
        assert data.attrs["scripted"]
        assert json.loads(data.attrs["problem_info"])["language_instruction"].startswith("pick up the alphabet soup")
        assert json.loads(data.attrs["env_args"])["env_name"] == "libero_floor_manipulation"
        assert data.attrs["macros_image_convention"] == "opengl"
        num_steps = demo.attrs["num_samples"]
        assert (data.attrs["num_demos"], data.attrs["total"]) == (1, num_steps)
        assert data.attrs["num_successes"] == 1 <= data.attrs["num_attempts"]
        assert demo["actions"].shape == (num_steps, 7)
        assert demo["rewards"][:].tolist() == demo["dones"][:].tolist() == [0] * (num_steps - 1) + [1]
        assert {name: demo[f"obs/{name}"].shape for name in demo["obs"]} == {
            **{name: (num_steps, size) for name, size in STATE_DIMS.items()},
            **dict.fromkeys(CAMERAS, (num_steps, 16, 16, 3)),
        }
        states = demo["states"][:]
    assert is_scripted(path)
    (read,) = read_demonstrations(path, instruction="", sensors=("joint_states", *CAMERAS))
    assert read.initial_state is not None
    joints = np.asarray(read.observations["joint_states"], dtype=np.float64)
    np.testing.assert_allclose(states[1:, 1:8], joints[1:], atol=1e-6)
    environment = Libero(suite="libero_object", simplified_meshes=True, small_textures=True).make(TASK)
    environment.reset(read.initial_state)
    outcomes = [environment.step(action) for action in read.actions_TA]
    assert outcomes == [False] * (num_steps - 1) + [True]
    again = ript_ray_here("demos", "libero", *options, cwd=tmp_path)
    assert "1 of 1 files are complete already" in again.stdout + again.stderr


def test_fields_that_a_benchmark_does_not_have_are_refused_by_name(tmp_path: Path) -> None:
    for options, message in (
        (("metaworld", "--benchmark.suite", "libero_goal"), "--benchmark.suite: MetaWorld has no such field; it has"),
        (("libero", "--benchmark.suite", "libero_11"), "--benchmark: suite: Input should be 'libero_spatial', "),
    ):
        result = ript_ray_here("demos", *options, "--task", TASK, cwd=tmp_path)
        assert result.returncode == 2
        assert message in text_of(result)
