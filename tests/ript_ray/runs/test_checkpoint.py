import ast
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file as torch_load_file
from safetensors.torch import save_file as torch_save_file

from ript_ray.config.experiment import Experiment
from ript_ray.errors import CheckpointError, StorageError
from ript_ray.runs import checkpoint
from ript_ray.runs.checkpoint import RunTotals, TrainingState
from ript_ray.runs.model_dir import from_pretrained, initial_policy
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.storage import hashed_dir
from ript_ray.types import RIPT, Progress
from tests.commands import ROOT
from tests.conftest import TINY_QUEST
from tests.disk import full_disk


@pytest.fixture(scope="module")
def source() -> SavedPolicy:
    experiment = Experiment("small", ("drawer-open-v3", "reach-v3"), policy=TINY_QUEST, seed=4)
    return SavedPolicy.initial(experiment)


@pytest.fixture
def saved(source: SavedPolicy, tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "run" / "checkpoints" / "update-00003", source)
    return tmp_path / "run" / "checkpoints" / "update-00003"


def test_experiment_and_weights_round_trip_bit_for_bit(source: SavedPolicy, saved: Path) -> None:
    loaded = checkpoint.load(saved)
    assert loaded.experiment == source.experiment
    assert loaded.arrays.keys() == source.arrays.keys()
    for name, array in source.arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)
        np.testing.assert_array_equal(loaded.build().state_arrays()[name], array)


def test_a_run_folder_means_its_newest_checkpoint(source: SavedPolicy, saved: Path) -> None:
    checkpoint.save(saved.with_name("update-00010"), source)
    assert checkpoint.find(saved.parent.parent) == saved.with_name("update-00010")
    assert checkpoint.find(saved) == saved


def test_nothing_is_overwritten(source: SavedPolicy, saved: Path) -> None:
    with pytest.raises(CheckpointError, match="exists already"):
        checkpoint.save(saved, source)


def test_non_finite_weights_are_never_written(source: SavedPolicy, tmp_path: Path) -> None:
    arrays = {name: array.copy() for name, array in source.arrays.items()}
    arrays["obs_proj.bias"][0] = np.nan
    with pytest.raises(CheckpointError, match=r"not finite: obs_proj\.bias"):
        checkpoint.save(tmp_path / "bad", SavedPolicy(source.experiment, arrays))
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


def test_paths_that_are_no_checkpoint_are_named(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is nothing at .*/nowhere"):
        checkpoint.find(tmp_path / "nowhere")
    (tmp_path / "foreign").mkdir()
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run folder"):
        checkpoint.find(tmp_path / "foreign")
    (tmp_path / "file.pth").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run folder"):
        checkpoint.find(tmp_path / "file.pth")


def rehash(folder: Path) -> None:
    names = [path.name for path in folder.iterdir() if path.name != "manifest.json"]
    manifest = {"schema": 1, "sha256": {name: hashed_dir.sha256_of(folder / name) for name in names}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def forge(path: Path, old: str, new: str) -> None:
    """Change a file of a checkpoint, and its hash."""
    text = path.read_text()
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new))
    rehash(path.parent)


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
def test_an_invalid_experiment_is_refused(saved: Path, old: str, new: str, message: str) -> None:
    forge(saved / "experiment.json", old, new)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(saved)


def test_weights_that_are_not_finite_are_refused_when_they_are_read(source: SavedPolicy, saved: Path) -> None:
    arrays = {name: array.copy() for name, array in source.arrays.items()}
    arrays["obs_proj.bias"][0] = np.nan
    save_file(arrays, saved / "policy.safetensors")
    rehash(saved)
    with pytest.raises(CheckpointError, match=r"policy\.safetensors has values that are not finite: obs_proj\.bias$"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("state_width", "8", "1" + 30 * "0"),
        ("prior_width", "16", "96000000"),
        ("skill_width", "16", "1000000000"),
        ("text_features", "16", "1000000000"),
        ("prior_layers", "2", "1000000"),
        ("chunk_length", "4", "1000000000"),
        ("text_features", "16", "65536"),
        ("prior_layers", "2", "1000"),
    ],
)
def test_sizes_out_of_this_world_are_refused_before_anything_is_built(
    saved: Path, name: str, old: str, new: str
) -> None:
    forge(saved / "experiment.json", f'"{name}": {old}', f'"{name}": {new}')
    before = psutil.Process().memory_info().rss
    with pytest.raises(CheckpointError, match=f"policy.{name.replace('_', '-')} must|does not fit|do not fit"):
        from_pretrained(saved)
    assert psutil.Process().memory_info().rss < before + 300e6


def test_a_setting_that_a_file_has_twice_is_refused(saved: Path) -> None:
    forge(saved / "experiment.json", '"seed": 4', '"seed": 0, "seed": 4')
    with pytest.raises(CheckpointError, match=r"experiment\.json cannot be read: it has 'seed' twice"):
        checkpoint.load(saved)


def test_other_sizes_than_those_of_the_weights_are_named_by_their_setting(saved: Path) -> None:
    (saved.parents[1] / "results.json").touch()
    wider = replace(TINY_QUEST, prior_width=32)
    experiment = Experiment("wider", ("reach-v3",), policy=wider, stages=(RIPT,), start_from=saved)
    with pytest.raises(CheckpointError, match=r"not fit this experiment: policy\.prior-width is 16 there, 32 here$"):
        initial_policy(experiment)
    fitting = replace(experiment, policy=replace(TINY_QUEST, top_k=3))
    assert initial_policy(fitting).experiment == fitting, "what does not change the weights may differ"


def test_weights_of_another_size_are_refused_when_the_policy_is_built(saved: Path) -> None:
    forge(saved / "experiment.json", '"prior_layers": 2', '"prior_layers": 1')
    with pytest.raises(CheckpointError, match=r"unknown policy_prior\.decoder\.layers\.1"):
        checkpoint.load(saved).build()


def test_a_failed_save_leaves_nothing_behind_and_keeps_earlier_checkpoints(source: SavedPolicy, saved: Path) -> None:
    later = saved.with_name("update-00004")
    unwritable = SavedPolicy(source.experiment, {**source.arrays, "odd": np.zeros(2, np.longdouble)})
    with pytest.raises(StorageError, match=r"update-00004 cannot be written: policy\.safetensors"):
        checkpoint.save(later, unwritable)
    with full_disk(3000), pytest.raises(StorageError, match=r"update-00004 cannot be written: .*File too large"):
        checkpoint.save(later, source)
    assert list(saved.parent.iterdir()) == [saved], "leftovers fill the disk"
    assert checkpoint.load(saved).arrays.keys() == source.arrays.keys()


def test_leftovers_of_a_killed_save_are_no_checkpoint_and_do_not_block_the_next(
    source: SavedPolicy, saved: Path
) -> None:
    unfinished = saved.with_name(".update-00004.unfinished")
    unfinished.mkdir()
    (unfinished / "policy.safetensors").write_bytes(b"half")
    assert checkpoint.find(saved.parent.parent) == saved
    checkpoint.save(saved.with_name("update-00004"), source)
    assert checkpoint.find(saved.parent.parent) == saved.with_name("update-00004")
    assert sorted(path.name for path in saved.parent.iterdir()) == ["update-00003", "update-00004"]


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def write_pickle(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(marker)))


def write_text_pickle(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(marker), protocol=0))


def write_torch_file(path: Path, marker: Path) -> None:
    torch.save({"weights": Payload(marker)}, path)


@pytest.mark.parametrize("is_rehashed", [False, True], ids=["foreign hash", "matching hash"])
@pytest.mark.parametrize("write", [write_pickle, write_text_pickle, write_torch_file])
@pytest.mark.parametrize("name", ["policy.safetensors", "experiment.json", "learner.safetensors", "training.json"])
def test_a_malicious_file_is_refused_by_name_and_never_run(
    source: SavedPolicy, tmp_path: Path, name: str, write, is_rehashed: bool
) -> None:
    marker, run = tmp_path / "marker", tmp_path / "run"
    folder = run / "checkpoints" / "update-00001"
    training = TrainingState(Progress(1, 2), RunTotals(env_steps=7), {"exp_avg/x": np.zeros(3, np.float32)})
    checkpoint.save(folder, source, training)
    write(folder / name, marker)
    if is_rehashed:
        rehash(folder)
    is_of_training = name in ("learner.safetensors", "training.json")
    with pytest.raises(CheckpointError, match=name):
        (checkpoint.load_state if is_of_training else checkpoint.load)(folder)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.latest_valid(run)
    assert not marker.exists(), "the file was run"
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists(), "the test's own payload does nothing"


def test_foreign_weights_with_a_matching_hash_are_refused_by_name(saved: Path) -> None:
    save_file({"foreign.weight": np.zeros((2, 2), np.float32)}, saved / "policy.safetensors")
    rehash(saved)
    run = saved.parent.parent
    with pytest.raises(
        CheckpointError, match=r"policy\.safetensors is foreign(.|\n)*foreign\.weight\n(.|\n)*and \d+ more"
    ):
        checkpoint.latest_valid(run)


def test_weights_of_another_type_are_refused_by_name(saved: Path) -> None:
    weights = torch_load_file(saved / "policy.safetensors")
    torch_save_file({**weights, "obs_proj.bias": weights["obs_proj.bias"].bfloat16()}, saved / "policy.safetensors")
    rehash(saved)
    with pytest.raises(CheckpointError, match=r"obs_proj\.bias has type bfloat16, not float32"):
        checkpoint.latest_valid(saved.parent.parent)


def test_nothing_in_the_package_unpickles_what_it_reads() -> None:
    unsafe = {"pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "joblib.load"}
    for path in sorted((ROOT / "ript_ray").rglob("*.py")) + sorted((ROOT / "envs").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in ("pickle", "cloudpickle", "joblib"), path
            if not isinstance(node, ast.Call):
                continue
            name, given = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
            assert name not in unsafe, f"{path}:{node.lineno}"
            assert name != "torch.load" or given.get("weights_only") == "True", f"{path}:{node.lineno}"
            assert given.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"
