"""Demonstration files: content, compatibility with other readers, interrupted and invalid files."""

import logging
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from ript_envs.metaworld.benchmark import MetaWorld
from ript_envs.metaworld.tasks import ML45_HELD_OUT, ML45_TRAIN
from ript_ray.config.data import Demonstrations
from ript_ray.config.experiment import Experiment
from ript_ray.config.rl import Sampling
from ript_ray.data.contexts import training_contexts
from ript_ray.data.demonstrations import record_demonstrations
from ript_ray.data.hdf5 import find_file, image_bytes, read_demonstrations, read_recipe
from ript_ray.data.recording import Plan, files_of, record_files
from ript_ray.errors import ConfigError, RiptError, StorageError
from ript_ray.runtime.cluster import Cluster
from ript_ray.types import Context
from tests.commands import RIPT_RAY, run

HERE = Cluster(in_process=True)
TASKS = ("reach-v3", "drawer-open-v3")
PLAN = Plan(
    MetaWorld(),
    num_episodes=3,
    action_noise=0.2,
    keep_failures=False,
    max_steps=150,
    max_attempts=5,
    seed=0,
)
SEEING = replace(PLAN, benchmark=MetaWorld(cameras=("corner_rgb",), rendering="fast"), num_episodes=2)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three demonstrations of two tasks, without images."""
    folder = tmp_path_factory.mktemp("data")
    record_files(PLAN, files_of(MetaWorld(), folder, TASKS), HERE)
    return folder


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of two demonstrations with images."""
    folder = tmp_path_factory.mktemp("seen")
    record_files(SEEING, files_of(MetaWorld(), folder, ["reach-v3"]), HERE)
    return find_file(folder, "reach-v3.hdf5")


def names_below(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


@pytest.mark.sim
def test_a_file_contains_the_demonstrations_that_would_be_recorded_in_memory(recorded: Path) -> None:
    settings = Demonstrations(num_per_task=3, action_noise=0.2, max_attempts=5)
    made = [
        demonstration
        for task in TASKS
        for demonstration in record_demonstrations(MetaWorld(), task, settings=settings, max_steps=150, seed=0)
    ]
    read = [
        demonstration
        for task in TASKS
        for demonstration in read_demonstrations(
            find_file(recorded, f"{task}.hdf5"),
            instruction=MetaWorld().instruction(task),
            sensors=("state", "robot_states"),
        )
    ]
    for one, other in zip(made, read, strict=True):
        assert one.instruction == other.instruction
        np.testing.assert_array_equal(one.actions_TA, other.actions_TA)
        for name, rows in other.observations.items():
            np.testing.assert_array_equal(one.observations[name], rows)
            assert np.asarray(rows).dtype == np.float32


@pytest.mark.sim
def test_a_file_has_the_layout_that_the_authors_loader_reads(seen: Path) -> None:
    assert seen.parts[-4:] == ("metaworld", "ML45_PRISE", "train", "reach-v3.hdf5")
    with h5py.File(seen, "r", swmr=False, libver="latest") as file:  # as their loader opens it
        demos = list(file["data"].keys())
        assert [int(name[5:]) for name in demos] == [0, 1]
        assert file["data"].attrs["total"] == sum(file[f"data/{name}"].attrs["num_samples"] for name in demos)
        for name in demos:
            group = file[f"data/{name}"]
            num_samples = group.attrs["num_samples"]
            assert group["actions"].shape == (num_samples, 4)
            assert group["obs/corner_rgb"].shape == (num_samples + 1, 128, 128, 3)
            assert group["obs/corner_rgb"].dtype == np.uint8
            assert group["obs/robot_states"].shape == (num_samples + 1, 8)
            assert group["obs/obs_gt"].shape == (num_samples + 1, 39)
            assert group["success"][:].tolist() == [0.0] * (num_samples - 1) + [1.0]
            assert group["terminated"][:].tolist() == [False] * (num_samples - 1) + [True]
            assert not group["truncated"][:].any()
            assert np.abs(group["actions"]).max() <= 1


@pytest.mark.sim
def test_replaying_a_files_actions_from_its_first_state_reproduces_its_images_and_success(seen: Path) -> None:
    (demonstration, _) = read_demonstrations(seen, instruction="", sensors=("corner_rgb", "state"))
    assert demonstration.initial_state is not None
    task = SEEING.benchmark.make("reach-v3")
    task.reset(demonstration.initial_state)
    outcomes = []
    for step, action in enumerate(demonstration.actions_TA):
        if step % 8 == 0:
            now = task.observe()
            np.testing.assert_array_equal(now["corner_rgb"], np.asarray(demonstration.observations["corner_rgb"])[step])
            np.testing.assert_array_equal(now["state"], np.asarray(demonstration.observations["state"])[step])
        outcomes.append(task.step(action))
    assert outcomes == [False] * (len(outcomes) - 1) + [True]
    task.close()


@pytest.mark.sim
def test_failures_are_dropped_and_replaced_unless_they_are_kept(tmp_path: Path) -> None:
    hard = replace(PLAN, max_steps=62)  # reach takes 45 to 80 steps, depending on the goal and on the noise
    for keeps in (False, True):
        plan = replace(hard, keep_failures=keeps, num_episodes=4)
        record_files(plan, {"reach-v3": tmp_path / f"{keeps}.hdf5"}, HERE)
    with h5py.File(tmp_path / "False.hdf5") as dropped, h5py.File(tmp_path / "True.hdf5") as kept:
        outcomes = [group["success"][-1] == 1 for group in kept["data"].values()]
        assert set(outcomes) == {True, False}
        assert [group["truncated"][-1] for group in kept["data"].values()] == [not outcome for outcome in outcomes]
        attempts = [int(group.attrs["attempt"]) for group in dropped["data"].values()]
        assert len(attempts) == 4
        assert [attempt for attempt in attempts if attempt < 4] == np.nonzero(outcomes)[0].tolist()
        assert all(group["success"][-1] == 1 for group in dropped["data"].values())


@pytest.mark.sim
def test_an_expert_that_keeps_failing_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RiptError, match="the expert of drawer-open-v3 failed 5 times in a row within 3 steps"):
        record_files(replace(PLAN, max_steps=3), files_of(MetaWorld(), tmp_path, ["drawer-open-v3"]), HERE)
    assert names_below(tmp_path) == set()


@pytest.mark.sim
def test_complete_files_are_not_recorded_again(recorded: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = files_of(MetaWorld(), recorded, TASKS)
    before = [path.stat().st_mtime_ns for path in paths.values()]
    with caplog.at_level(logging.INFO, "ript_ray"):
        record_files(PLAN, paths, HERE)
    assert [path.stat().st_mtime_ns for path in paths.values()] == before
    assert caplog.messages == ["2 of 2 files are complete already"]


@pytest.mark.sim
def test_files_recorded_with_other_settings_are_neither_mixed_nor_overwritten(recorded: Path) -> None:
    more = replace(PLAN, num_episodes=4, benchmark=MetaWorld(rendering="fast"))
    message = r"recorded with other settings \(benchmark.rendering is full, not fast; num_episodes is 3, not 4"
    with pytest.raises(RiptError, match="reach-v3.hdf5 was " + message):
        record_files(more, files_of(MetaWorld(), recorded, TASKS), HERE)


DIE_AT_THE_SECOND_FILE = """
import os, signal, sys

def watch(event, arguments):
    if event == "os.rename" and ".drawer-open-v3.hdf5.unfinished" in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)

from ript_ray.cli.main import main
sys.addaudithook(watch)
main()
"""


@pytest.mark.sim
@pytest.mark.cli
def test_a_killed_recording_resumes_with_the_missing_files_to_the_same_bytes(recorded: Path, tmp_path: Path) -> None:
    options = ("--episodes", "3", "--max-steps", "150", "--max-attempts", "5", "--no-images", "--out", "data")
    command = ("demos", "metaworld", "--task", *TASKS, *options, "--cluster.in-process")
    killed = run(sys.executable, "-c", DIE_AT_THE_SECOND_FILE, *command, cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    assert "reach-v3.hdf5: 3 demonstrations of" in killed.stdout
    first = find_file(tmp_path, "reach-v3.hdf5")
    written = first.stat().st_mtime_ns
    (first.parent.parent / "train" / ".drawer-open-v3.hdf5.unfinished").write_bytes(b"half a file")
    result = run(*RIPT_RAY, *command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "1 of 2 files are complete already" in result.stdout
    assert first.stat().st_mtime_ns == written
    for task in TASKS:
        assert find_file(tmp_path, f"{task}.hdf5").read_bytes() == find_file(recorded, f"{task}.hdf5").read_bytes()
    assert names_below(tmp_path) == {f"{task}.hdf5" for task in TASKS}


@pytest.mark.cli
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "drawr-open-v3"], "did you mean drawer-open-v3"),
        (["--task", "reach-v3", "--episodes", "0"], "episodes must be at least 1, not 0"),
    ],
)
def test_a_bad_request_is_refused_before_anything_is_written(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    result = run(*RIPT_RAY, "demos", "metaworld", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_splits_of_the_papers_go_to_train_and_test() -> None:
    paths = files_of(MetaWorld(), Path("data"), ["ml45-train", "ml45-test"])
    assert set(paths) == set(ML45_TRAIN + ML45_HELD_OUT)
    assert {path.parent.name for task, path in paths.items() if task in ML45_TRAIN} == {"train"}
    assert {str(paths[task].parent) for task in ML45_HELD_OUT} == {"data/metaworld/ML45_PRISE/test"}
    with pytest.raises(ConfigError, match="did you mean ml45-train"):
        files_of(MetaWorld(), Path("data"), ["ml45-trian"])
    with pytest.raises(ConfigError, match="name at least one"):
        files_of(MetaWorld(), Path("data"), [])


@pytest.mark.sim
def test_contexts_are_the_first_states_of_the_files_plus_noise_if_configured(recorded: Path) -> None:
    demos = Demonstrations(folder=recorded, num_per_task=3)

    def collect(num_per_task: int, noise_m: float) -> tuple[Context, ...]:
        sampling = Sampling(context_source="demos", contexts_per_task=num_per_task, context_noise_m=noise_m)
        return training_contexts(Experiment("small", TASKS, demos=demos, sampling=sampling))

    contexts = collect(num_per_task=3, noise_m=0.0)
    assert [context.task for context in contexts] == ["reach-v3"] * 3 + ["drawer-open-v3"] * 3
    with h5py.File(find_file(recorded, "drawer-open-v3.hdf5")) as file:
        assert contexts[4].initial_state == tuple(file["data/demo_1/states"][0])
    moved = collect(num_per_task=3, noise_m=0.025)
    for one, other in zip(contexts, moved, strict=True):
        distance = np.array(other.initial_state) - one.initial_state
        assert 0 < np.abs(distance).max() < 0.15
        horizontal = [3, 4] if one.task == "reach-v3" else [0, 1]  # reach has no object, so noise moves its goal
        assert set(np.flatnonzero(distance)) <= set(horizontal)
    assert moved == collect(num_per_task=3, noise_m=0.025)
    assert collect(num_per_task=1, noise_m=0.0) == contexts[::3]


def as_the_authors_write(path: Path) -> None:
    """A demonstration of five steps in the layout of QueST's own recorder."""
    with h5py.File(path, "w") as file:
        group = file.create_group("data/demo_0")
        group.attrs["num_samples"] = 5
        group.create_dataset("states", data=())
        group.create_dataset("obs/corner_rgb", data=np.zeros((6, 128, 128, 3), np.uint8))
        group.create_dataset("obs/obs_gt", data=np.arange(6 * 39, dtype=np.float32).reshape(6, 39))
        group.create_dataset("actions", data=np.zeros((5, 4)))


def test_a_file_of_the_authors_is_read_too_but_holds_no_contexts(tmp_path: Path) -> None:
    path = tmp_path / "reach-v3.hdf5"
    as_the_authors_write(path)
    (demonstration,) = read_demonstrations(path, instruction="reach", sensors=("corner_rgb", "state"))
    assert demonstration.actions_TA.dtype == np.float32
    assert np.asarray(demonstration.observations["corner_rgb"]).shape == (5, 128, 128, 3)
    np.testing.assert_array_equal(np.asarray(demonstration.observations["state"])[1], np.arange(39, 78))
    demos, sampling = (
        Demonstrations(folder=tmp_path, num_per_task=1),
        Sampling(context_source="demos", contexts_per_task=1),
    )
    with pytest.raises(RiptError, match="demonstrations of reach-v3 have no initial states to draw contexts from"):
        training_contexts(Experiment("small", TASKS[:1], demos=demos, sampling=sampling))
    with pytest.raises(RiptError, match="was not recorded by ript-ray"):
        read_recipe(path)


def test_liberos_files_give_their_first_states_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "libero_demo.hdf5"
    with h5py.File(path, "w") as file:
        for index in (0, 1, 2, 10):
            states = np.full((4, 92), index, dtype=np.float64)
            file[f"data/demo_{index}/states"] = states + np.arange(4)[:, None]
            file[f"data/demo_{index}/actions"] = np.zeros((4, 7))
    for chosen, expected in ((None, [0, 1, 2, 10]), ((3, 1), [10, 1])):
        read = read_demonstrations(path, instruction="", sensors=(), chosen=chosen)
        np.testing.assert_array_equal([each.initial_state for each in read], np.outer(expected, np.ones(92)))


def link_outside(demo: h5py.Group, secret: Path) -> None:
    demo["obs/light"] = h5py.ExternalLink(secret, "secret")


def link_outside_behind_a_soft_link(demo: h5py.Group, secret: Path) -> None:
    demo["outside"] = h5py.ExternalLink(secret, "/")
    demo["obs/light"] = h5py.SoftLink(f"{demo.name}/outside/secret")


def store_outside(demo: h5py.Group, secret: Path) -> None:
    demo.create_dataset("obs/light", shape=(4,), dtype=np.uint8, external=[(secret, 0, 4)])


def map_outside(demo: h5py.Group, secret: Path) -> None:
    layout = h5py.VirtualLayout(shape=(4,), dtype=np.uint8)
    layout[:] = h5py.VirtualSource(secret, "secret", shape=(4,))
    demo.create_virtual_dataset("obs/light", layout)


OUTSIDE: dict[Callable[[h5py.Group, Path], None], str] = {
    link_outside: "refused: its link data/demo_0/obs/light leads out of the file",
    link_outside_behind_a_soft_link: "refused: its link data/demo_0/outside leads out of the file",
    store_outside: "refused: the values of /data/demo_0/obs/light are in other files",
    map_outside: "refused: the values of /data/demo_0/obs/light are in other files",
}


@pytest.mark.parametrize("point", OUTSIDE)
@pytest.mark.parametrize("on_demand", [False, True])
def test_a_file_that_points_to_other_files_is_refused_and_what_points_there_is_named(
    point: Callable[[h5py.Group, Path], None], on_demand: bool, tmp_path: Path
) -> None:
    path, secret = tmp_path / "reach-v3.hdf5", tmp_path / "secret.hdf5"
    with h5py.File(secret, "w") as file:
        file["secret"] = np.arange(4, dtype=np.uint8)
    with h5py.File(path, "w") as file:
        demo = file.create_group("data/demo_0")
        demo["actions"] = np.zeros((4, 4))
        point(demo, secret)
        assert len(demo["obs/light"][:]) == 4, "HDF5 itself reads the other file"
    with pytest.raises(RiptError, match=f"reach-v3.hdf5 is {OUTSIDE[point]}"):
        read_demonstrations(path, instruction="", sensors=("light",), on_demand=on_demand)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "there is no demonstration file"),
    "text": (lambda path: path.write_text("no"), "is corrupt or not an HDF5 file"),
    "truncated": (cut_in_half, "is corrupt or not an HDF5 file"),
    "of something else": (lambda path: h5py.File(path, "w").close(), "it has no group 'data'"),
}


@pytest.mark.sim
@pytest.mark.parametrize("case", BAD_FILES)
def test_an_invalid_file_is_named_with_the_problem(case: str, recorded: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.hdf5"
    shutil.copy(find_file(recorded, "reach-v3.hdf5"), path)
    spoil, message = BAD_FILES[case]
    spoil(path)
    for read in (read_recipe, lambda path: image_bytes(path, ())):
        with pytest.raises(RiptError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("recipe", ["[" * 30_000, "{", "[1]", '{"benchmark": 3}'])
def test_a_recipe_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path, recipe: str) -> None:
    paths = files_of(MetaWorld(), tmp_path, ["reach-v3"])
    paths["reach-v3"].parent.mkdir(parents=True)
    with h5py.File(paths["reach-v3"], "w") as file:
        file.create_group("data").attrs["recipe"] = recipe
    message = r"reach-v3\.hdf5 is corrupt .*; delete it or move it away, and it is recorded again"
    with pytest.raises(RiptError, match=message):
        record_files(PLAN, paths, HERE)


@pytest.mark.sim
def test_missing_files_and_sensors_are_named_with_the_available_ones(recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(RiptError, match=r"file push-v3.hdf5 \(there are drawer-open-v3.hdf5, reach-v3.hdf5\)"):
        find_file(recorded, "push-v3.hdf5")
    with pytest.raises(RiptError, match="there is none of any task"):
        find_file(tmp_path, "push-v3.hdf5")
    path = find_file(recorded, "reach-v3.hdf5")
    with pytest.raises(RiptError, match="contains 3 demonstrations, fewer than the 50 needed"):
        read_demonstrations(path, instruction="", sensors=(), chosen=[49])
    with pytest.raises(RiptError, match="has no obs/corner_rgb; its observations are obs_gt, relative, robot_states"):
        read_demonstrations(path, instruction="", sensors=("corner_rgb",))
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        shutil.copy(path, tmp_path / folder)
    with pytest.raises(RiptError, match=r"several files reach-v3\.hdf5"):
        find_file(tmp_path, "reach-v3.hdf5")


@pytest.mark.sim
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "metaworld").write_text("a file where a folder should be")
    with pytest.raises(StorageError, match=r"reach-v3.hdf5 cannot be written"):
        record_files(PLAN, files_of(MetaWorld(), tmp_path, ["reach-v3"]), HERE)
