"""A run killed at any point resumes from its newest checkpoint, bit-identical to an uninterrupted run."""

import contextlib
import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

from ript_ray.pipeline import resume_experiment
from ript_ray.runs import checkpoint
from ript_ray.runtime.cluster import Cluster
from ript_ray.tracking.console import View
from ript_ray.tracking.logs import ViewMode
from ript_ray.tracking.metrics_log import read_metrics
from tests.commands import only_folder, quickstart_here, run

pytestmark = [pytest.mark.sim, pytest.mark.cli]

TINY = (
    *("--tasks", "faucet-open-v3", "--name", "tiny", "--checkpoint-every", "1", "--keep-checkpoints", "all"),
    *("--sampling.batch-rollouts", "16", "--sampling.contexts-per-task", "6", "--ppo.num-iterations", "2"),
    *("--sft.autoencoder.num-steps", "150", "--sft.prior.num-steps", "80"),
    *("--evaluation.contexts-per-task", "3", "--evaluation.batch-size", "3", "--num-updates", "4"),
)

POINTS = {
    "in the middle of an episode": "call rollout.py:execute",
    "in the middle of learning": "call learner.py:_step",
    "inside a save, between two files": "return hashed_dir.py:save_arrays",
    "inside a save, right after it got its name": "c_return rename",
    "while the metrics log is written": "call metrics_log.py:append",
}

DIE_AT = """
import os, signal, sys
point = sys.argv.pop(1)

def watch(frame, event, argument):
    place = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_code.co_name}"
    what = f"{event} {argument.__name__}" if event.startswith("c_") else f"{event} {place}"
    if what == point:
        os.kill(os.getpid(), signal.SIGKILL)

def after_first_save(event, arguments):
    if event == "os.rename" and ".update-00002.unfinished" in str(arguments[0]):
        after_first_save.has_saved = True
    elif after_first_save.has_saved and event == "open" and sys.getprofile() is None:
        sys.setprofile(watch)

after_first_save.has_saved = False
from ript_ray.cli.main import main
sys.addaudithook(after_first_save)
main()
"""


KILL_LEARNER = """
import contextlib, sys
import psutil

def after_second_save(event, arguments):
    if event == "os.rename" and ".update-00002.unfinished" in str(arguments[0]):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # another one has just ended
                if "ray::LoggedLearner" in child.name():
                    child.kill()

from ript_ray.cli.main import main
sys.addaudithook(after_second_save)
main()
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of four updates."""
    home = tmp_path_factory.mktemp("home")
    result = quickstart_here(*TINY, "--cluster.in-process", cwd=home)
    assert result.returncode == 0, result.stdout + result.stderr
    return only_folder(home / "runs" / "tiny")


def after_one_update(undisturbed: Path, home: Path) -> Path:
    """A copy of the run as it was after its first update."""
    folder = home / undisturbed.name
    shutil.copytree(undisturbed, folder)
    (folder / "results.json").unlink()
    for saved in (folder / "checkpoints").iterdir():
        if saved.name.startswith("update-") and saved.name > "update-00001":
            shutil.rmtree(saved)
    return folder


def assert_it_resumes_to_the_same_end(folder: Path, undisturbed: Path, home: Path) -> None:
    with contextlib.chdir(home):  # in this process: starting another one takes longer than the rest of the run
        resume_experiment(folder, Cluster(in_process=True), view_of=lambda _: View(ViewMode.QUIET, 4))
    assert_same_weights(folder, undisturbed)
    figures, expected = (json.loads((path / "results.json").read_text()) for path in (folder, undisturbed))
    for name in expected.keys() - {"wall_s", "core_s"}:
        assert figures[name] == expected[name], name
    updates = [point.update for point in read_metrics(folder / "metrics.jsonl") if point.stage == "ript"]
    assert updates == [0, 1, 2, 3, 4, 4], "each update once, and both evaluations"


def assert_same_weights(folder: Path, undisturbed: Path) -> None:
    for name in ("policy.safetensors", "learner.safetensors"):
        path = Path("checkpoints") / "update-00004" / name
        assert (folder / path).read_bytes() == (undisturbed / path).read_bytes(), name


@pytest.mark.parametrize("point", POINTS)
def test_a_driver_killed_anywhere_resumes_to_the_same_weights(point: str, undisturbed: Path, tmp_path: Path) -> None:
    folder = after_one_update(undisturbed, tmp_path)
    command = (sys.executable, "-c", DIE_AT, POINTS[point], "resume", str(folder), "--cluster.in-process")
    result = run(*command, cwd=tmp_path)
    assert result.returncode == -signal.SIGKILL, result.stdout + result.stderr
    resume_point = checkpoint.latest_valid(folder)
    assert resume_point.folder.name in ("update-00002", "update-00003")
    assert resume_point.skipped == ()
    assert_it_resumes_to_the_same_end(folder, undisturbed, tmp_path)


@pytest.mark.ray
def test_a_killed_learner_is_named_and_replaced_and_the_run_ends_with_the_same_weights(
    undisturbed: Path, tmp_path: Path
) -> None:
    folder = after_one_update(undisturbed, tmp_path)
    result = run(sys.executable, "-c", KILL_LEARNER, "resume", str(folder), "--view", "lines", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "learner 0" in result.stdout
    assert "replacing the learners" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    assert_same_weights(folder, undisturbed)
