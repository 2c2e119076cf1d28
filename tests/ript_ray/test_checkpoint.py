import json
from pathlib import Path

import numpy as np
import pytest

from ript_ray import checkpoint
from ript_ray.build import PolicySource, new_policy
from ript_ray.config import Experiment
from ript_ray.errors import CheckpointError
from tests.conftest import TINY_QUEST


@pytest.fixture(scope="module")
def source() -> PolicySource:
    experiment = Experiment("small", ("drawer-open-v3", "reach-v3"), policy=TINY_QUEST, seed=4)
    return PolicySource(experiment, new_policy(experiment).state_arrays())


@pytest.fixture
def saved(source: PolicySource, tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "run" / "checkpoints" / "update-00003", source)
    return tmp_path / "run" / "checkpoints" / "update-00003"


def test_a_checkpoint_gives_back_experiment_and_weights_bit_for_bit(source: PolicySource, saved: Path) -> None:
    loaded = checkpoint.load(saved)
    assert loaded.experiment == source.experiment
    assert loaded.arrays.keys() == source.arrays.keys()
    for name, array in source.arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)
        np.testing.assert_array_equal(loaded().state_arrays()[name], array)


def test_a_run_folder_means_its_newest_checkpoint(source: PolicySource, saved: Path) -> None:
    checkpoint.save(saved.with_name("update-00010"), source)
    assert checkpoint.find(saved.parent.parent) == saved.with_name("update-00010")
    assert checkpoint.find(saved) == saved


def test_nothing_is_overwritten(source: PolicySource, saved: Path) -> None:
    with pytest.raises(CheckpointError, match="exists already"):
        checkpoint.save(saved, source)


def test_weights_that_are_not_finite_are_never_written(source: PolicySource, tmp_path: Path) -> None:
    arrays = {name: array.copy() for name, array in source.arrays.items()}
    arrays["obs_proj.bias"][0] = np.nan
    with pytest.raises(CheckpointError, match=r"not finite: obs_proj\.bias"):
        checkpoint.save(tmp_path / "bad", PolicySource(source.experiment, arrays))
    assert list(tmp_path.iterdir()) == []


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [truncate, flip_a_bit, empty])
@pytest.mark.parametrize("name", ["policy.safetensors", "experiment.json"])
def test_a_damaged_file_is_named(saved: Path, name: str, harm) -> None:
    harm(saved / name)
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        checkpoint.load(saved)


@pytest.mark.parametrize("name", ["policy.safetensors", "experiment.json"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        checkpoint.load(saved)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "sha256": 3}'])
def test_a_broken_manifest_is_named(saved: Path, content: str) -> None:
    (saved / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read"):
        checkpoint.load(saved)


def test_a_manifest_of_a_later_version_is_refused(saved: Path) -> None:
    (saved / "manifest.json").write_text(json.dumps({"schema": 99, "sha256": {}}))
    with pytest.raises(CheckpointError, match="schema 99; this version reads 1"):
        checkpoint.load(saved)


def test_foreign_places_are_named(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is nothing at .*/nowhere"):
        checkpoint.find(tmp_path / "nowhere")
    (tmp_path / "foreign").mkdir()
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run folder"):
        checkpoint.find(tmp_path / "foreign")
    (tmp_path / "file.pth").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run folder"):
        checkpoint.find(tmp_path / "file.pth")


def rehash(folder: Path) -> None:
    manifest = {"schema": 1, "sha256": {name: checkpoint._sha256(folder / name) for name in checkpoint.FILES}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"clip_low": 0.2', '"clip_low": 2.0', "clip-low must be above 0 and below 1"),
        (
            '"clip_low": 0.2',
            '"clip_lo": 0.2',
            r"missing ppo\.clip_low; unknown ppo\.clip_lo \(did you mean clip_low\?\)",
        ),
        ('"drawer-open-v3"', '"drawer-opened"', "did you mean drawer-open-v3"),
        ('"seed": 4', '"seed": "4"', "does not describe an experiment"),
    ],
)
def test_an_experiment_that_makes_no_sense_is_refused(saved: Path, old: str, new: str, message: str) -> None:
    path = saved / "experiment.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    rehash(saved)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(saved)


def test_weights_of_another_size_are_refused_when_the_policy_is_built(saved: Path) -> None:
    path = saved / "experiment.json"
    path.write_text(path.read_text().replace('"prior_layers": 2', '"prior_layers": 1'))
    rehash(saved)
    with pytest.raises(CheckpointError, match=r"unknown policy_prior\.decoder\.layers\.1"):
        checkpoint.load(saved)()


def test_a_save_that_fails_leaves_nothing_that_looks_like_a_checkpoint(source: PolicySource, saved: Path) -> None:
    later = saved.with_name("update-00004")
    unwritable = PolicySource(source.experiment, {**source.arrays, "odd": np.zeros(2, np.longdouble)})
    with pytest.raises(CheckpointError, match=r"policy\.safetensors cannot be written"):
        checkpoint.save(later, unwritable)
    assert saved.with_name(".update-00004.unfinished").is_dir()  # as a kill between write and rename leaves it, too
    assert checkpoint.find(saved.parent.parent) == saved
    checkpoint.save(later, source)
    assert checkpoint.find(saved.parent.parent) == later
    assert sorted(path.name for path in saved.parent.iterdir()) == ["update-00003", "update-00004"]
