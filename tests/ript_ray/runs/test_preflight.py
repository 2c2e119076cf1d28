"""What is refused or told before a run begins."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from experiments import extending, pixels
from ript_envs.contract import Environment
from ript_envs.gl import RenderingError
from ript_ray.config.experiment import Experiment
from ript_ray.data.demonstrations import ExpertEpisode
from ript_ray.data.hdf5 import DemonstrationWriter
from ript_ray.errors import RiptError
from ript_ray.pipeline import run_experiment
from ript_ray.runs.preflight import require_start
from ript_ray.runtime.cluster import Cluster
from ript_ray.tracking.console import View
from ript_ray.tracking.logs import ViewMode

EXPERIMENT = replace(extending.EXPERIMENT, learner_threads=1)
IN_PROCESS = Cluster(in_process=True)


@dataclass(frozen=True)
class LineWithoutExpert(extending.Line):
    kind: Literal["line-without-expert"] = field(default="line-without-expert", kw_only=True)  # type: ignore[assignment]

    def make(self, task: str) -> Environment:
        return NoExpert()


class NoExpert:
    reset, step, observe = (getattr(extending.PointOnLine, name) for name in ("reset", "step", "observe"))
    render, close = extending.PointOnLine.render, extending.PointOnLine.close


def write(folder: Path, *, sensor: str = "state", length: int = 2, num_actions: int = 1, episodes: int = 2) -> Path:
    """Write demonstrations of both tasks."""
    for task in EXPERIMENT.tasks:
        writer = DemonstrationWriter(folder / f"{task}.hdf5", task, recipe={}, versions={})
        for attempt in range(episodes):
            rows: NDArray[np.float32] = np.zeros((4, length), np.float32)
            episode = ExpertEpisode(np.zeros(2), {sensor: rows}, np.zeros((3, num_actions), np.float32), True)
            writer.add(episode, attempt=attempt, is_truncated=False)
        writer.finish()
    return folder


def reading(folder: Path) -> Experiment:
    return replace(EXPERIMENT, demos=replace(EXPERIMENT.demos, folder=folder))


def sampling(**changes: Any) -> Experiment:
    return replace(EXPERIMENT, sampling=replace(EXPERIMENT.sampling, **changes))


IMPOSSIBLE: dict[str, tuple[Callable[[Path], Experiment], str]] = {
    "no demonstrations": (lambda home: reading(home / "nowhere"), "nowhere has no demonstration file left.hdf5"),
    "too few of them": (lambda home: reading(write(home, episodes=1)), "contains 1 demonstrations, fewer than"),
    "another sensor": (lambda home: reading(write(home, sensor="images")), "has no obs/obs_gt"),
    "a sensor of another size": (lambda home: reading(write(home, length=3)), "state of length 3, not 2"),
    "actions of another robot": (lambda home: reading(write(home, num_actions=7)), "actions of length 7, not 1"),
    "no expert": (lambda _: replace(EXPERIMENT, benchmark=LineWithoutExpert()), "no scripted expert for left"),
    "noise on contexts that cannot move": (lambda _: sampling(context_noise_m=0.1), "cannot move the objects"),
    "contexts that are not there": (lambda home: sampling(context_source=home / "x.json"), "x.json"),
    "two learners in one process": (lambda _: replace(EXPERIMENT, num_learners=2), "in one process it must be 1"),
    "a policy that is not there": (
        lambda home: replace(EXPERIMENT, stages=("ript",), start_from=home / "nowhere"),
        "there is nothing at",
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_end_well_is_refused_before_anything_is_written(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = IMPOSSIBLE[case]
    experiment = change(tmp_path)
    monkeypatch.chdir(tmp_path)  # where MLflow's default store would be
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RiptError, match=message):
        run_experiment(experiment, IN_PROCESS, runs=tmp_path / "runs", view=View(ViewMode.QUIET, 1))
    assert sorted(tmp_path.iterdir()) == before


def test_a_sound_start_is_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert require_start(EXPERIMENT, IN_PROCESS, tmp_path / "runs").experiment == EXPERIMENT
    require_start(reading(write(tmp_path)), IN_PROCESS, tmp_path / "runs")
    assert caplog.messages == []


def test_more_learner_threads_than_cores_and_a_disk_that_is_too_small_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    many = replace(EXPERIMENT, num_learners=1000, num_updates=10**12, keep_versions="all")
    require_start(many, Cluster(), tmp_path / "runs")
    cores, disk = caplog.messages
    assert "learners of 1 threads: 1000, on " in cores
    assert "MB of free space, and the run may take up to" in disk


def test_a_policy_with_cameras_needs_a_machine_that_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "off")
    with pytest.raises(RenderingError, match="MUJOCO_GL is 'off'; to render images it must be egl, osmesa, glfw"):
        require_start(pixels.EXPERIMENT, IN_PROCESS, Path("runs"))
