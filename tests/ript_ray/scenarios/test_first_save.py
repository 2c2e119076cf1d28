"""A run that ends in its first save, killed or for want of space, is resumed: it starts over, to the same weights."""

import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.extending import EXPERIMENT as EXAMPLE
from experiments.extending import LaplaceSFT
from ript_ray.errors import CheckpointError
from ript_ray.pipeline import resume_experiment, run_experiment
from ript_ray.policies.supervised import SupervisedStage
from ript_ray.runs import checkpoint
from ript_ray.runtime.cluster import Cluster
from ript_ray.tracking.console import View
from ript_ray.tracking.logs import ViewMode
from tests.commands import only_folder, run

SHORT = LaplaceSFT(SupervisedStage(num_steps=20, learning_rate=3e-3))
EXPERIMENT = replace(EXAMPLE, stages=("regression",), sft=SHORT)
IN_PROCESS = Cluster(in_process=True)
OPTIONS = (
    *("--stages", "regression", "--sft.regression.num-steps", "20"),
    *("--cluster.in-process", "--view", "quiet", "--runs", "runs"),
)

DIE_AT = """
import os, signal, sys
what, name = sys.argv.pop(1), sys.argv.pop(1)

def watch(event, arguments):
    if event == what and name in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)

from experiments import extending
from ript_ray.cli.launch import launch
sys.addaudithook(watch)
launch(extending.EXPERIMENT, "")
"""


ON_A_FULL_DISK = """
import subprocess
from pathlib import Path
from ript_ray.errors import StorageError
from ript_ray.pipeline import resume_experiment, run_experiment
from tests.ript_ray.scenarios.test_first_save import EXPERIMENT, IN_PROCESS, quiet

runs = Path("runs").absolute()
try:
    run_experiment(EXPERIMENT, IN_PROCESS, runs=runs, view=quiet())
except StorageError as error:
    print(error)
subprocess.run(["mount", "-o", "remount,size=50m", runs], check=True)
resume_experiment(runs / "extending" / "latest", IN_PROCESS, view_of=lambda _: quiet())
"""


def quiet() -> View:
    return View(ViewMode.QUIET, 1)


@pytest.fixture
def undisturbed(store: str, tmp_path: Path) -> bytes:
    """The weights at the end of an uninterrupted run."""
    return weights_of(run_experiment(EXPERIMENT, IN_PROCESS, runs=tmp_path / "undisturbed", view=quiet()).folder)


def weights_of(folder: Path) -> bytes:
    return (folder / "checkpoints" / "regression-0000020" / "policy.safetensors").read_bytes()


@pytest.mark.cli
@pytest.mark.parametrize(("event", "name"), [("open", "training.json"), ("os.rename", ".regression-0000000.")])
def test_a_run_killed_in_its_first_save_is_resumed_to_the_same_weights(
    event: str, name: str, undisturbed: bytes, tmp_path: Path
) -> None:
    result = run(sys.executable, "-c", DIE_AT, event, name, *OPTIONS, cwd=tmp_path)
    assert result.returncode == -signal.SIGKILL, result.stdout + result.stderr
    folder = only_folder(tmp_path / "runs" / "extending")
    assert checkpoint.saved_in(folder) == []
    resume_experiment(folder, IN_PROCESS, view_of=lambda _: quiet())
    assert weights_of(folder) == undisturbed


@pytest.mark.cli
def test_a_run_whose_first_save_met_a_full_disk_is_resumed_to_the_same_weights(
    undisturbed: bytes, tmp_path: Path
) -> None:
    """The disk is a file system in memory, of 32 kB, that only the child sees."""
    own_mounts = ("unshare", "--user", "--map-root-user", "--mount")
    if run(*own_mounts, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path), cwd=tmp_path).returncode != 0:
        pytest.skip("this system lets no user mount a file system of their own")
    (tmp_path / "runs").mkdir()
    mount = f"mount -t tmpfs -o size=32k tmpfs {tmp_path}/runs"
    command = f"{mount} && {sys.executable} -c '{ON_A_FULL_DISK}' && cp -rL runs/extending/latest end"
    result = run(*own_mounts, "sh", "-c", command, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "regression-0000000 cannot be written: " in result.stdout
    assert "No space left on device" in result.stdout
    assert weights_of(tmp_path / "end") == undisturbed


def test_a_run_whose_checkpoints_are_all_damaged_or_set_aside_does_not_start_over(
    undisturbed: bytes, tmp_path: Path
) -> None:
    folder = only_folder(tmp_path / "undisturbed" / "extending")
    (folder / "results.json").unlink()
    (saved,) = checkpoint.saved_in(folder)
    saved.rename(saved.with_name(f".{saved.name}.skipped-1"))
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        resume_experiment(folder, IN_PROCESS, view_of=lambda _: quiet())
