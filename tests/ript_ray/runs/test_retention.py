"""What a run deletes of its own, and what must never go."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.quickstart import EXPERIMENT as QUICKSTART
from ript_ray.config.experiment import Experiment, Kept
from ript_ray.errors import ConfigError, ReplayError
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.runs import checkpoint
from ript_ray.runs.checkpoint import TrainingState
from ript_ray.runs.replay import RecordedRun
from ript_ray.runs.retention import SUPERFLUOUS, expected_bytes, prune_checkpoints, prune_weights, size_bytes
from ript_ray.runs.rollout_log import GroupRecord, weights_file
from ript_ray.runs.run_dir import RunDir
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.storage.atomic import atomic_symlink
from ript_ray.types import Progress
from tests.conftest import TINY_QUEST, line_stream

EXPERIMENT = Experiment("small", ("reach-v3",), policy=TINY_QUEST)


@pytest.fixture
def folder(tmp_path: Path) -> RunDir:
    """A run with checkpoints of both supervised stages and of updates 0 to 5; the best is update 2."""
    run = RunDir(tmp_path)
    policy = SavedPolicy.initial(EXPERIMENT)
    for stage in ("autoencoder", "prior"):
        checkpoint.save(run.checkpoint(9, stage), policy, TrainingState(Progress(), stage=stage, step=9))
    for update in range(6):
        checkpoint.save(run.checkpoint(update), policy, TrainingState(Progress(update, update)))
    atomic_symlink(run.best, "update-00002")
    return run


def names(run: RunDir) -> list[str]:
    return sorted(path.name for path in run.best.parent.iterdir())


STAGES = ["autoencoder-0000009", "best", "prior-0000009", "update-00000"]


@pytest.mark.parametrize(
    ("keep", "updates"),
    [(1, [2, 5]), (2, [2, 4, 5]), (4, [2, 3, 4, 5]), (9, [1, 2, 3, 4, 5]), ("all", [1, 2, 3, 4, 5])],
)
def test_the_newest_checkpoints_stay_and_the_first_the_best_and_the_ends_of_stages(
    folder: RunDir, keep: Kept, updates: list[int]
) -> None:
    prune_checkpoints(folder, keep)
    assert names(folder) == STAGES + [f"update-{update:05d}" for update in updates]
    assert folder.best.resolve() == folder.checkpoint(2).resolve()
    assert checkpoint.load_latest(folder.path).experiment == EXPERIMENT
    assert checkpoint.latest_valid(folder.path).folder == folder.checkpoint(5)


def die_in_mid_deletion(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "os.remove" and "update-00003" in os.readlink(f"/proc/self/fd/{arguments[1]}"):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_while_a_checkpoint_is_deleted_leaves_none_in_part_and_the_next_save_clears_up(folder: RunDir) -> None:
    if (child := os.fork()) == 0:
        sys.addaudithook(die_in_mid_deletion)
        prune_checkpoints(folder, 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert f".update-00003{SUPERFLUOUS}" in names(folder)
    for saved in checkpoint.saved_in(folder.path):
        checkpoint.load(saved)
    assert checkpoint.latest_valid(folder.path).skipped == ()
    prune_checkpoints(folder, 1)
    assert names(folder) == [*STAGES, "update-00002", "update-00005"]


def test_what_cannot_be_deleted_ends_nothing(folder: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    in_the_way = folder.best.parent / f".update-00001{SUPERFLUOUS}"
    in_the_way.write_text("")
    prune_checkpoints(folder, 1)
    assert "update-00001 cannot be deleted" in caplog.text
    assert names(folder) == [in_the_way.name, *STAGES, "update-00001", "update-00002", "update-00005"]


def test_the_newest_versions_of_the_weights_are_kept(tmp_path: Path) -> None:
    files = [tmp_path / f"update-{update:05d}.safetensors" for update in (1, 2, 9, 10, 11)]
    for path in files:
        path.write_text("weights")
    prune_weights(files, "all")
    assert sorted(tmp_path.iterdir()) == files
    prune_weights(list(tmp_path.iterdir()), 2)
    assert sorted(tmp_path.iterdir()) == files[3:]


def test_a_version_that_is_not_kept_is_named_with_the_groups_that_can_be_replayed_and_the_setting(
    folder: RunDir,
) -> None:
    weights_file(folder.weights, 7).parent.mkdir()
    weights_file(folder.weights, 7).touch()
    prune_checkpoints(folder, 1)
    records = {
        group: GroupRecord(group, version + 1, version, "reach-v3", 0, (1, 0), (5, 5), Verdict.ACCEPTED)
        for group, version in enumerate((0, 0, 1, 2, 2, 3, 5, 6, 7))
    }
    recorded = RecordedRun(folder, SavedPolicy.initial(EXPERIMENT), line_stream(), records)
    with pytest.raises(ReplayError) as refused:
        recorded.policy(3)
    for part in ("version 3 of", "versions 0, 2, 5, 7 are", "groups 0 to 1, 3 to 4, 6, 8 can", "--keep-versions all"):
        assert part in str(refused.value)


def test_the_size_of_a_run_counts_what_it_holds_once(folder: RunDir) -> None:
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert size_bytes(folder.path) == pytest.approx(sum(path.stat().st_size for path in files), abs=100)
    os.symlink(folder.path, folder.path / "loop")
    assert size_bytes(folder.path) == pytest.approx(sum(path.stat().st_size for path in files), abs=300)


def test_a_run_takes_no_more_disk_than_was_expected() -> None:
    policy_bytes, trained_bytes = 2_484_428, 1_561_000  # of the quickstart
    moments = 2 * trained_bytes
    taken = 3 * policy_bytes + 2 * moments + 2 * (policy_bytes + moments) + 20 * trained_bytes  # see `keep_checkpoints`
    assert taken < 60e6
    assert taken < expected_bytes(QUICKSTART, policy_bytes) < 2 * taken
    everything = replace(QUICKSTART, keep_checkpoints="all", keep_versions="all")
    assert expected_bytes(everything, policy_bytes) > 2 * expected_bytes(QUICKSTART, policy_bytes)


@pytest.mark.parametrize("option", ["keep_checkpoints", "keep_versions"])
def test_at_least_one_of_the_newest_is_kept(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option.replace('_', '-')} must be at least 1, not 0"):
        replace(EXPERIMENT, **{option: 0})  # type: ignore[arg-type]


def test_checkpoints_of_the_latest_run_are_found_where_they_are(folder: RunDir, tmp_path: Path) -> None:
    latest = tmp_path.with_name(f"{tmp_path.name}-latest")
    latest.symlink_to(tmp_path)
    newest = folder.path / "checkpoints" / "update-00005"
    assert checkpoint.find(latest) == checkpoint.latest_valid(latest).folder == newest
    assert checkpoint.find(folder.best) == folder.best
