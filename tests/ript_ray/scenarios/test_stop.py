"""A run stopped in an orderly way loses no finished update, whatever the interval of its checkpoints."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest

from experiments.extending import EXPERIMENT as EXAMPLE
from ript_ray.pipeline import resume_experiment, run_experiment
from ript_ray.rl.callbacks import RolloutStats
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.runs import checkpoint
from ript_ray.runtime.cluster import Cluster
from ript_ray.tracking.console import View
from ript_ray.tracking.logs import ViewMode
from ript_ray.tracking.metrics_log import read_metrics
from ript_ray.types import GroupSummary
from tests.commands import environment, only_folder

EXPERIMENT = replace(EXAMPLE, num_updates=5, checkpoint_every=10, sampling=replace(EXAMPLE.sampling, batch_rollouts=16))
SESSIONS = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray"
IN_PROCESS = Cluster(in_process=True)
LAST = Path("checkpoints") / "update-00005"


class Stop(View):
    """Interrupts the run in the middle of the update after `update`."""

    def __init__(self, update: int):
        super().__init__(ViewMode.QUIET, EXPERIMENT.num_updates)
        self._update = update

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        if stats.update > self._update:
            raise KeyboardInterrupt


class StopInSave(View):
    """Interrupts the run in the middle of the save of update 3."""

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        if stats.update == 3:
            sys.setprofile(self._watch)

    def _watch(self, frame: FrameType, event: str, _: object) -> None:
        if event == "return" and frame.f_code.co_name == "save_arrays":
            sys.setprofile(None)
            raise KeyboardInterrupt


@pytest.mark.usefixtures("store")
def test_a_run_interrupted_in_the_save_of_a_due_checkpoint_saves_it_whole(tmp_path: Path) -> None:
    each = replace(EXPERIMENT, checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(each, IN_PROCESS, runs=tmp_path, view=StopInSave(ViewMode.QUIET, 5))
    stopped = only_folder(tmp_path / "extending")
    point = checkpoint.latest_valid(stopped)
    assert (point.folder.name, point.skipped) == ("update-00003", ())
    assert not list(stopped.glob("checkpoints/.*"))


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "cluster", [IN_PROCESS, pytest.param(Cluster(num_actors=2, cpus_per_actor=0.5), marks=pytest.mark.ray)]
)
def test_a_run_interrupted_after_update_3_resumes_from_it_to_the_same_weights(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])  # of the actors, which build the example's policy
    session_folders = set(SESSIONS.glob(f"session_*_{os.getpid()}"))
    run_experiment(EXPERIMENT, IN_PROCESS, runs=tmp_path / "undisturbed", view=View(ViewMode.QUIET, 5))
    with pytest.raises(KeyboardInterrupt):
        run_experiment(EXPERIMENT, cluster, runs=tmp_path / "stopped", view=Stop(3))
    undisturbed, stopped = (only_folder(tmp_path / name / "extending") for name in ("undisturbed", "stopped"))
    point = checkpoint.latest_valid(stopped)
    assert (point.folder.name, point.skipped) == ("update-00003", ())
    resume_experiment(stopped, cluster, view_of=lambda _: View(ViewMode.QUIET, 5))
    for name in ("policy.safetensors", "learner.safetensors"):
        assert (stopped / LAST / name).read_bytes() == (undisturbed / LAST / name).read_bytes(), name
    updates = [point.update for point in read_metrics(stopped / "metrics.jsonl") if point.stage == "ript"]
    assert updates == [0, 1, 2, 3, 4, 5, 5], "each update once, and both evaluations"
    assert set(SESSIONS.glob(f"session_*_{os.getpid()}")) == session_folders, "Ray's folders are removed"
