"""A supervised stage that is stopped loses no finished step, and saves by the clock as well."""

import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from experiments.extending import EXPERIMENT as EXAMPLE
from experiments.extending import LaplaceSFT, Line, PointOnLine
from ript_envs.contract import Observation
from ript_ray.config.experiment import Experiment, register
from ript_ray.errors import CheckpointError
from ript_ray.pipeline import resume_experiment, run_experiment
from ript_ray.policies.supervised import SupervisedStage, WindowBatch, WindowReader, Windows
from ript_ray.runs import checkpoint
from ript_ray.runtime.cluster import Cluster
from ript_ray.sft.interrupts import deferred_interrupts
from ript_ray.sft.trainer import SupervisedTrainer
from ript_ray.tracking.console import View
from ript_ray.tracking.logs import ViewMode
from ript_ray.tracking.metrics_log import read_metrics
from tests.commands import only_folder

STAGE = SupervisedStage(num_steps=60, learning_rate=3e-3)
EXPERIMENT: Experiment = replace(EXAMPLE, stages=("regression",), sft=LaplaceSFT(STAGE))
IN_PROCESS = Cluster(in_process=True)


class Stop(View):
    """Calls `do` after a step."""

    def __init__(self, step: int, do: Callable[[], None]):
        super().__init__(ViewMode.QUIET, 1)
        self._step, self._do = step, do

    def on_step(self, name: str, num_steps: int, step: int, loss: float) -> None:
        if step == self._step:
            self._do()


def interrupt() -> None:
    raise KeyboardInterrupt


def run(home: Path, view: Stop | None = None, cluster: Cluster = IN_PROCESS) -> Path:
    """Run the stage and return the run's folder."""
    view = view or Stop(0, interrupt)
    try:
        run_experiment(EXPERIMENT, cluster, runs=home, view=view)
    except (KeyboardInterrupt, ZeroDivisionError):
        assert view._step > 0
    return only_folder(home / "extending")


def saved(folder: Path) -> list[str]:
    return [path.name for path in checkpoint.saved_in(folder)]


def last_weights(folder: Path) -> bytes:
    return (folder / "checkpoints" / "regression-0000060" / "policy.safetensors").read_bytes()


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("step", [37, 60])
def test_a_stage_interrupted_after_any_step_resumes_from_that_step_to_the_same_weights(
    step: int, tmp_path: Path
) -> None:
    undisturbed, stopped = run(tmp_path / "undisturbed"), run(tmp_path / "stopped", Stop(step, interrupt))
    assert saved(stopped)[-1] == f"regression-{step:07d}"
    assert checkpoint.latest_valid(stopped).state.step == step
    resume_experiment(stopped, IN_PROCESS, view_of=lambda _: Stop(0, interrupt))
    assert saved(stopped) == saved(undisturbed) == ["regression-0000060"]
    assert last_weights(stopped) == last_weights(undisturbed)
    points, expected = (read_metrics(folder / "metrics.jsonl") for folder in (stopped, undisturbed))
    assert points[-1].metrics == expected[-1].metrics
    losses = [[point.update for point in some if "regression/loss" in point.metrics] for some in (points, expected)]
    assert losses[0] == losses[1] == list(range(1, 61))
    assert (stopped / "regression.json").read_bytes() == (undisturbed / "regression.json").read_bytes()


@pytest.mark.usefixtures("store")
def test_a_stage_that_fails_between_two_steps_leaves_a_checkpoint_of_the_last_one(tmp_path: Path) -> None:
    folder = run(tmp_path, Stop(23, lambda: [][1 // 0]))
    assert saved(folder)[-1] == "regression-0000023"


@pytest.mark.usefixtures("store")
def test_a_stage_saves_by_the_clock_though_no_checkpoint_is_due_by_its_steps(tmp_path: Path) -> None:
    found: list[list[str]] = []
    view = Stop(41, lambda: found.append(saved(only_folder(tmp_path / "extending"))))
    run(tmp_path, view, replace(IN_PROCESS, checkpoint_minutes=1e-9))
    assert found == [["regression-0000039", "regression-0000040"]]


class PointSeenFromAside(PointOnLine):
    def observe(self) -> Observation:
        return {"state": np.array([self.position + 0.01, self.goal], np.float32)}


@dataclass(frozen=True)
class OtherCamera(Line):
    """The same actions lead to the same states, but what is seen differs."""

    kind: Literal["seen-from-aside"] = field(default="seen-from-aside", kw_only=True)  # type: ignore[assignment]

    def make(self, task: str) -> PointSeenFromAside:
        return PointSeenFromAside()


@pytest.mark.usefixtures("store")
def test_a_stage_is_not_resumed_with_demonstrations_that_only_look_different(tmp_path: Path) -> None:
    folder = run(tmp_path, Stop(37, interrupt))
    register(OtherCamera)
    point = checkpoint.latest_valid(folder)
    shutil.rmtree(point.folder)
    other = replace(point.policy, experiment=replace(EXPERIMENT, benchmark=OtherCamera()))
    checkpoint.save(point.folder, other, point.state)
    with pytest.raises(CheckpointError, match="the demonstrations are not those"):
        resume_experiment(folder, IN_PROCESS, view_of=lambda _: Stop(0, interrupt))
    shutil.rmtree(point.folder)
    dataset = {name: value for name, value in point.state.totals.dataset.items() if name != "crc32_of_observations"}
    older = replace(point.state, totals=replace(point.state.totals, dataset=dataset))
    checkpoint.save(point.folder, point.policy, older)
    resume_experiment(folder, IN_PROCESS, view_of=lambda _: Stop(0, interrupt))


NOTHING_SEEN = Windows(("go",) * 8, {}, np.zeros((8, 1, 1), np.float32))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_step_waits_for_its_end_and_nothing_of_the_step_is_lost(
    number: signal.Signals,
) -> None:
    def begin(*, is_stopped: bool) -> tuple[nn.Linear, SupervisedTrainer]:
        torch.manual_seed(0)
        linear, drop = nn.Linear(1, 1), nn.Dropout(0.5)

        def loss(batch: WindowBatch, _: np.random.Generator) -> torch.Tensor:
            result = drop(linear(batch.rows.float()[:, None])).square().mean()
            if is_stopped and trainer.step == 2:
                signal.raise_signal(number)
            return result

        parameters, settings = dict(linear.named_parameters()), SupervisedStage(num_steps=3, batch_size=2)
        trainer = SupervisedTrainer(parameters, loss, WindowReader(NOTHING_SEEN), settings=settings, seed=1)
        return linear, trainer

    expected, undisturbed = begin(is_stopped=False)
    list(undisturbed.steps())
    state = undisturbed.state()
    linear, stopped = begin(is_stopped=True)
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(stopped.steps())
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert (stopped.step, stopped.is_between_steps) == (3, True)
    for name, array in stopped.state().items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)
    assert torch.equal(linear.weight, expected.weight)


def test_a_second_interrupt_waits_and_a_third_acts_at_once() -> None:
    reached = []

    def work() -> None:
        with deferred_interrupts():
            signal.raise_signal(signal.SIGINT)  # to this thread: os.kill may find another one, which delays it
            reached.append("after the first")
            signal.raise_signal(signal.SIGINT)
            reached.append("after the second")
            signal.raise_signal(signal.SIGINT)
            reached.append("after the third")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a script in the background has it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGINT, before)
    assert reached == ["after the first", "after the second"]
