"""A driver killed in the middle of an update: the groups so far are taken over, and the weights are the same."""

import logging
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.extending import EXPERIMENT as EXAMPLE
from ript_ray.pipeline import resume_experiment, run_experiment
from ript_ray.runs.kept_groups import KeptGroups
from ript_ray.runs.rollout_log import read_groups
from ript_ray.runs.run_dir import RunDir
from ript_ray.runtime.cluster import Cluster
from ript_ray.tracking.console import View
from ript_ray.tracking.logs import ViewMode
from ript_ray.tracking.mlflow_run import find_run, open_client
from tests.commands import environment, only_folder, run
from tests.tracked import doubled_points

EXPERIMENT = replace(
    EXAMPLE, num_updates=3, checkpoint_every=10, evaluation=replace(EXAMPLE.evaluation, contexts_per_task=5)
)
OPTIONS = ("--num-updates", "3", "--checkpoint-every", "10", "--evaluation.contexts-per-task", "5", "--view", "quiet")
IN_PROCESS = Cluster(in_process=True)
TWO_ACTORS = Cluster(num_actors=2, cpus_per_actor=0.5)

DIE_IN_UPDATE_3 = """
import contextlib, json, os, signal, sqlite3, sys, time
from pathlib import Path

def is_tracked(update):
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect("mlflow.db")) as database:
        return database.execute("SELECT 1 FROM metrics WHERE key = 'ppo/loss' AND step = ?", [update]).fetchone()

def all_are_written(folder):  # the learner writes the groups that it has received, the driver has noted them
    trained = [note for note in folder.glob("*.json*") if json.loads(note.read_text())["is_trained"]]
    return all(note.with_name(note.name.split(".")[0] + ".group").exists() for note in trained)

def watch(event, arguments):
    global num_notes
    if event == "os.rename" and str(arguments[0]).endswith(".json.unfinished") and "kept-groups" in str(arguments[0]):
        num_notes += Path("runs/extending/latest/weights/update-00002.safetensors").exists()
        if num_notes == 6:
            while not (is_tracked(2) and all_are_written(Path(arguments[0]).parent)):
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)

num_notes = 0
from experiments import extending
from ript_ray.cli.launch import launch
sys.addaudithook(watch)
launch(extending.EXPERIMENT, "")
"""


def quiet() -> View:
    return View(ViewMode.QUIET, 3)


@pytest.mark.cli
@pytest.mark.parametrize("cluster", [IN_PROCESS, pytest.param(TWO_ACTORS, marks=pytest.mark.ray)])
def test_a_driver_killed_in_mid_update_resumes_without_repeating_a_group(
    cluster: Cluster,
    empty_store: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])  # of the actors, which build the example's policy
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"
    undisturbed = run_experiment(EXPERIMENT, IN_PROCESS, runs=tmp_path / "undisturbed", view=quiet()).folder
    on_ray = ("--cluster.num-actors", "2", "--cluster.cpus-per-actor", "0.5")
    where = ("--cluster.in-process",) if cluster.in_process else on_ray
    result = run(sys.executable, "-c", DIE_IN_UPDATE_3, *OPTIONS, *where, cwd=tmp_path)
    assert result.returncode == -signal.SIGKILL, result.stdout + result.stderr
    folder = only_folder(tmp_path / "runs" / "extending")
    num_kept = len(KeptGroups(folder / "kept-groups"))
    assert num_kept >= 2 * EXPERIMENT.sampling.groups_per_update + 5, (
        "no checkpoint but the first: two updates and a half"
    )
    caplog.set_level(logging.INFO, "ript_ray")
    monkeypatch.chdir("/")  # the store is that of the run, not of the working directory
    resume_experiment(folder, cluster, view_of=lambda _: quiet())
    assert f"groups that an earlier process has rolled out since the checkpoint: {num_kept}" in caplog.messages
    (text,) = (text for text in caplog.messages if text.startswith("groups that were not rolled out again: "))
    assert int(text.rpartition(" ")[2]) == num_kept
    for name in ("policy.safetensors", "learner.safetensors"):
        last = Path("checkpoints") / "update-00003" / name
        assert (folder / last).read_bytes() == (undisturbed / last).read_bytes(), name
    logged, expected = (
        {group.group: group for group in read_groups(of / "groups.jsonl")} for of in (folder, undisturbed)
    )
    assert logged == expected
    assert not (folder / "kept-groups").exists()
    assert doubled_points(store) == []
    tracked = find_run(open_client(store), "extending", RunDir(folder).run_id)
    assert tracked.info.status == "FINISHED"
    assert len(open_client(store).get_metric_history(tracked.info.run_id, "ppo/loss")) == 3
