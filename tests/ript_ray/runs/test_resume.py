"""A run resumed from a checkpoint equals an uninterrupted run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ript_ray.config.experiment import Experiment
from ript_ray.errors import CheckpointError
from ript_ray.policies.base import Policy
from ript_ray.rl.train import train
from ript_ray.rl.weights import apply
from ript_ray.runs import checkpoint
from ript_ray.runs.checkpoint import RunTotals, TrainingState
from ript_ray.runs.model_dir import from_pretrained
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.runtime.serial import SerialRuntime
from ript_ray.types import Arrays, Progress, Version
from tests.conftest import TINY_QUEST, line_parts, line_stream
from tests.ript_ray.rl.test_group_request import nudge
from tests.ript_ray.runs.test_checkpoint import forge, rehash
from tests.ript_ray.runtime.test_runtimes import POLICIES, SAMPLING, Log, checksums


def train_from(
    runtime: SerialRuntime, num_updates: int, start: Progress | None = None, *, variant: str = "default"
) -> Log:
    log, stream = Log(), line_stream(perturb=nudge if variant == "noise on rollouts" else None)
    sampling = replace(SAMPLING, dynamic=variant != "no dynamic sampling")
    train(runtime, stream, sampling=sampling, num_updates=num_updates, seed=5, callbacks=[log], start=start)
    return log


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("variant", ["default", "noise on rollouts", "no dynamic sampling"])
@pytest.mark.parametrize("stop", [1, 2])
def test_three_further_updates_equal_an_uninterrupted_run_bit_for_bit(kind: str, stop: int, variant: str) -> None:
    parts = line_parts(POLICIES[kind])
    expected = checksums(train_from(SerialRuntime(parts), stop + 3, variant=variant))

    interrupted = SerialRuntime(parts)
    record = train_from(interrupted, stop, variant=variant).records[-1]
    state = record.learner_state()
    policy = POLICIES[kind]()
    apply(record.weights, policy)
    arrays = policy.state_arrays()

    def build() -> Policy:
        rebuilt = POLICIES[kind]()
        rebuilt.load_state_arrays(arrays)
        return rebuilt

    resumed = SerialRuntime(line_parts(build))
    resumed.restore(Version(stop), state)
    assert checksums(train_from(resumed, stop + 3, start=record.progress, variant=variant)) == expected[stop:]


def test_moments_of_another_policy_are_refused_by_name() -> None:
    donor = SerialRuntime(line_parts(POLICIES["tokens"]))
    train_from(donor, 1)
    with pytest.raises(CheckpointError, match=r"does not fit the policy:(.|\n)*unknown \w+/policy_prior"):
        SerialRuntime(line_parts(POLICIES["laplace"])).restore(Version(1), donor.learner_state())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with resumable checkpoints of updates 0 to 3, and weights only of update 4."""
    experiment = Experiment("small", ("reach-v3",), policy=TINY_QUEST)
    source = SavedPolicy.initial(experiment)
    checkpoint.save(tmp_path / "checkpoints" / "update-00000", source)
    for update in (1, 2, 3):
        moments: Arrays = {"exp_avg/x": np.full(3, update, np.float32)}
        training = TrainingState(Progress(update, 10 * update), RunTotals(env_steps=7), moments)
        checkpoint.save(tmp_path / "checkpoints" / f"update-{update:05d}", source, training)
    checkpoint.save(tmp_path / "checkpoints" / "update-00004", source)
    return tmp_path


def test_the_newest_resumable_checkpoint_is_found_and_holds_what_was_saved(run: Path) -> None:
    point = checkpoint.latest_valid(run)
    newest, problems = point.folder, list(point.skipped)
    assert newest.name == "update-00003"
    assert problems == [f"{run}/checkpoints/update-00004 has no optimizer state"]
    training = checkpoint.load_state(newest)
    assert training is not None
    assert training.progress == Progress(3, 30)
    assert training.totals == RunTotals(env_steps=7)
    np.testing.assert_array_equal(training.learner["exp_avg/x"], np.full(3, 3, np.float32))


@pytest.mark.parametrize("name", ["learner.safetensors", "training.json", "policy.safetensors"])
def test_a_damaged_checkpoint_is_named_and_the_next_older_one_is_used(run: Path, name: str) -> None:
    path = run / "checkpoints" / "update-00003" / name
    path.write_bytes(path.read_bytes()[:-3])
    point = checkpoint.latest_valid(run)
    newest, problems = point.folder, list(point.skipped)
    assert newest.name == "update-00002"
    assert any(f"{path} is damaged" in problem for problem in problems)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"next_index": 30', '"next_index": "30"'), ('"env_steps": 7', '"env_steps": "many"'), ('"update"', '"upd"')],
)
def test_an_invalid_training_state_is_named(run: Path, old: str, new: str) -> None:
    folder = run / "checkpoints" / "update-00003"
    forge(folder / "training.json", old, new)
    with pytest.raises(CheckpointError, match=r"training\.json does not describe a training state"):
        checkpoint.load_state(folder)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        *(('"env_steps": 7', f'"env_steps": {count}', "totals.env_steps") for count in ("-1", "1" + 30 * "0")),
        *(('"wall_s": 0.0', f'"wall_s": {time}', "totals.wall_s") for time in ("NaN", "Infinity", "1e999", "1e308")),
        ('"next_index": 30', '"next_index": -30', "progress.next_index"),
        ('"step": 0', '"step": -1', "step"),
        ('"groups": {}', '"groups": {"mixed": -1}', "totals.groups.mixed"),
        ('"trained": 0', '"trained": 99999999999999999999', "totals.ledger.trained"),
    ],
)
def test_impossible_counts_and_times_are_named_before_anything_starts(
    run: Path, old: str, new: str, named: str
) -> None:
    folder = run / "checkpoints" / "update-00003"
    forge(folder / "training.json", old, new)
    with pytest.raises(CheckpointError, match=rf"training\.json does not describe a training state: {named}"):
        checkpoint.load_state(folder)


def test_totals_that_are_missing_are_named(run: Path) -> None:
    folder = run / "checkpoints" / "update-00003"
    content = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps({**content, "totals": {}}))
    rehash(folder)
    with pytest.raises(CheckpointError, match=r"training\.json does not .*missing totals\.env_steps"):
        checkpoint.load_state(folder)


def test_without_a_valid_checkpoint_there_is_no_silent_start_from_scratch(run: Path) -> None:
    for folder in (run / "checkpoints").iterdir():
        (folder / "policy.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint to resume from(.|\n)*update-00003(.|\n)*update-00000"):
        checkpoint.latest_valid(run)


def test_newer_checkpoints_are_quarantined_until_the_next_resume(run: Path) -> None:
    (run / "checkpoints" / ".update-00004.unfinished").mkdir()
    checkpoint.quarantine_newer(run / "checkpoints" / "update-00002")
    assert checkpoint.find(run).name == "update-00002"
    assert len(list((run / "checkpoints").iterdir())) == 5, "of a killed process nothing is kept"
    checkpoint.quarantine_newer(run / "checkpoints" / "update-00001")
    hidden = {path.name.partition(".skipped-")[0] for path in (run / "checkpoints").glob(".*")}
    assert hidden == {".update-00002"}, "what every resume skips would fill the disk"


def test_a_policy_is_loaded_from_the_next_older_checkpoint_if_the_newest_is_damaged(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = run / "checkpoints" / "update-00004" / "policy.safetensors"
    newest.write_bytes(newest.read_bytes()[:-3])
    older = checkpoint.load(run / "checkpoints" / "update-00003").build()
    for name, array in from_pretrained(run).state_arrays().items():
        np.testing.assert_array_equal(array, older.state_arrays()[name], err_msg=name)
    assert caplog.messages == [
        f"skipping a checkpoint: {newest} is damaged: its SHA-256 is not the one in manifest.json"
    ]
    with pytest.raises(CheckpointError, match="is damaged"):
        from_pretrained(newest.parent)
    for folder in (run / "checkpoints").iterdir():
        (folder / "policy.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint that is valid(.|\n)*update-00000"):
        from_pretrained(run)
