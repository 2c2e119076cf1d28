"""Supervised stages resume to the same bits, and stages run one by one end like stages run together."""

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ript_ray.config.data import Demonstrations
from ript_ray.config.experiment import Experiment
from ript_ray.config.rl import PPO, Evaluation, Sampling
from ript_ray.errors import CheckpointError, ConfigError, DivergenceError
from ript_ray.pipeline import Results, resume_experiment, run_experiment
from ript_ray.policies.quest.config import QuestSFT
from ript_ray.policies.quest.policy import QuestPolicy
from ript_ray.policies.supervised import Augmentation, Rows, SupervisedStage, Windows
from ript_ray.runs import checkpoint
from ript_ray.runs.model_dir import from_pretrained
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.runtime.cluster import Cluster
from ript_ray.sft.trainer import SupervisedTrainer
from ript_ray.tracking.console import View
from ript_ray.tracking.logs import ViewMode
from ript_ray.tracking.metrics_log import read_metrics
from ript_ray.types import RIPT
from tests.commands import only_folder
from tests.conftest import TINY_QUEST

HERE = Cluster(in_process=True)
SEEING = replace(TINY_QUEST, cameras=("corner_rgb",), image_size=16, image_channels=4, image_width=8, dropout=0.2)
BY_STEPS = SupervisedStage(num_steps=12, batch_size=8, learning_rate=1e-2)
BY_EPOCHS = SupervisedStage(num_epochs=3, batch_size=6, learning_rate=1e-2)


def windows_of(policy_settings, num_windows: int = 20) -> Windows:
    generator = np.random.default_rng(0)
    seen: dict[str, Rows] = {
        "state": generator.normal(size=(num_windows, 39)).astype(np.float32),
        "corner_rgb": generator.integers(0, 255, (num_windows, 24, 24, 3), dtype=np.uint8),
    }
    chunks = generator.normal(size=(num_windows, policy_settings.chunk_length, 4)).astype(np.float32)
    return Windows(("reach",) * num_windows, seen, chunks)


def begin(stage: str, settings: SupervisedStage, *, noisy: bool) -> tuple[QuestPolicy, SupervisedTrainer]:
    policy, windows = SavedPolicy.initial(Experiment("small", ("reach-v3",), policy=SEEING)).build(), windows_of(SEEING)
    assert isinstance(policy, QuestPolicy)
    policy.train()
    sft = QuestSFT(autoencoder=settings, prior=settings, noisy_tokens=noisy)
    (task,) = (task for task in sft.tasks() if task.name == stage)
    parameters, loss_fn = task.parameters(policy), task.loss_fn(policy, windows)
    return policy, SupervisedTrainer(parameters, loss_fn, task.reader(policy, windows), settings=settings, seed=3)


@pytest.mark.parametrize("settings", [BY_STEPS, BY_EPOCHS], ids=["steps", "epochs"])
@pytest.mark.parametrize(("stage", "noisy"), [("autoencoder", False), ("prior", False), ("prior", True)])
def test_a_stage_that_stops_after_any_step_resumes_to_the_same_bits(
    stage: str, noisy: bool, settings: SupervisedStage
) -> None:
    policy, trainer = begin(stage, settings, noisy=noisy)
    expected = list(trainer.steps())
    assert len(expected) == trainer.num_steps == 12
    for stop in (1, 5, 12):
        first, interrupted = begin(stage, settings, noisy=noisy)
        steps = interrupted.steps()
        losses = [next(steps) for _ in range(stop)]
        state, arrays = interrupted.state(), first.state_arrays()
        torch.manual_seed(99)
        second, resumed = begin(stage, settings, noisy=noisy)
        second.load_state_arrays(arrays)
        resumed.restore(stop, state)
        assert losses + list(resumed.steps()) == expected
        for name, array in policy.state_arrays().items():
            np.testing.assert_array_equal(second.state_arrays()[name], array, err_msg=name)


def rates(settings: SupervisedStage) -> list[float]:
    _, trainer = begin("autoencoder", settings, noisy=False)
    return [trainer._optimizer.param_groups[0]["lr"] for _ in trainer.steps()]


def test_the_learning_rate_falls_to_a_tenth_by_steps_or_by_epochs() -> None:
    steps, epochs = rates(BY_STEPS), rates(BY_EPOCHS)
    assert steps[0] == epochs[0] == pytest.approx(1e-2)
    assert steps[6] == pytest.approx((1e-2 + 1e-3) / 2)
    assert np.diff(steps).max() < 0
    assert [len(set(epochs[start : start + 4])) for start in (0, 4, 8)] == [1, 1, 1]
    assert len(set(epochs)) == 3


def test_the_schedule_may_be_shorter_than_the_stage_as_in_the_authors_loop_over_epochs_0_to_n() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    upstream = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3, eta_min=1e-3)
    expected = []
    for _ in range(3 + 1):
        expected += [upstream.get_last_lr()[0]] * 4  # steps of an epoch
        optimizer.step()
        upstream.step()
    assert rates(replace(BY_EPOCHS, num_epochs=4, schedule_epochs=3)) == pytest.approx(expected, rel=1e-9)
    assert rates(replace(BY_EPOCHS, num_epochs=5, schedule_epochs=3))[-4:] == [pytest.approx(1e-3)] * 4
    with pytest.raises(ConfigError, match="schedule-epochs of a supervised stage, here 3, needs num-epochs"):
        replace(BY_STEPS, schedule_epochs=3)


def test_an_epoch_visits_every_window_once() -> None:
    _, trainer = begin("autoencoder", BY_EPOCHS, noisy=False)
    rows = [part.tolist() for _, part in zip(range(8), trainer._batches(), strict=False)]
    for start in (0, 4):
        assert sorted(row for part in rows[start : start + 4] for row in part) == list(range(20))
    assert rows[:4] != rows[4:]


def test_divergence_of_a_stage_is_reported_with_its_step() -> None:
    _, trainer = begin("autoencoder", replace(BY_STEPS, learning_rate=1e30), noisy=False)
    with pytest.raises(DivergenceError, match=r"step \d+: loss .* not finite; lower the stage's learning-rate"):
        list(trainer.steps())


def test_a_state_of_another_stage_is_refused() -> None:
    _, one = begin("autoencoder", BY_STEPS, noisy=False)
    next(one.steps())
    _, other = begin("prior", BY_STEPS, noisy=False)
    with pytest.raises(CheckpointError, match="does not fit the policy"):
        other.restore(1, one.state())
    with pytest.raises(CheckpointError, match="not the state of a stage of 12 steps after step 13"):
        one.restore(13, one.state())


POLICY = replace(TINY_QUEST, sensors=("relative",), dropout=0.1, chunk_length=8, num_executed=8)
EXPERIMENT = Experiment(
    "small",
    ("reach-v3", "faucet-open-v3"),
    policy=POLICY,
    demos=Demonstrations(num_per_task=1, num_held_out=1, action_noise=0.3),
    sft=QuestSFT(
        autoencoder=SupervisedStage(num_steps=40, batch_size=16, learning_rate=3e-3, checkpoint_every=10),
        prior=SupervisedStage(num_epochs=2, batch_size=16, learning_rate=3e-3, checkpoint_every=7),
        augmentation=Augmentation(),
    ),
    sampling=Sampling(group_size=4, batch_rollouts=8, contexts_per_task=20, max_uniform_groups=100),
    ppo=PPO(num_iterations=1, minibatch_rollouts=8, learning_rate=1e-3),
    evaluation=Evaluation(contexts_per_task=3),
    num_updates=1,
    max_steps=80,
)


class Interrupting(View):
    """Ctrl-C after a step of a stage."""

    def __init__(self, stage: str, step: int):
        super().__init__(ViewMode.QUIET, 1)
        self._where = (stage, step)

    def on_step(self, name: str, num_steps: int, step: int, loss: float) -> None:
        if (name, step) == self._where:
            raise KeyboardInterrupt


@contextlib.contextmanager
def interrupted_before_recording(is_wanted: bool) -> Iterator[None]:
    """Ctrl-C as soon as the log says that demonstrations are being recorded."""

    def interrupt(record: logging.LogRecord) -> bool:
        if is_wanted and record.getMessage().startswith("recording"):
            raise KeyboardInterrupt
        return True

    logger = logging.getLogger("ript_ray.data.dataset")
    logger.addFilter(interrupt)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(logging.NOTSET)
        logger.removeFilter(interrupt)


def quiet() -> View:
    return View(ViewMode.QUIET, 1)


def run(experiment: Experiment, home: Path, view: View | None = None) -> Results:
    with view or quiet() as shown:
        return run_experiment(experiment, HERE, runs=home / "runs", view=shown)


def last_weights(folder: Path) -> bytes:
    return (checkpoint.find(folder) / "policy.safetensors").read_bytes()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the runs and their MLflow store."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        yield home


@pytest.fixture(scope="module")
def together(home: Path) -> Results:
    return run(EXPERIMENT, home)


@pytest.mark.sim
def test_three_runs_of_one_stage_each_end_like_one_run_of_three(home: Path, together: Results) -> None:
    start: Path | None = None
    for stage in EXPERIMENT.stages:
        apart = run(replace(EXPERIMENT, name=stage, stages=(stage,), start_from=start), home)
        start = apart.folder
        assert (apart.before is None, apart.after is None) == (stage != RIPT, stage == "autoencoder")
    assert start is not None
    assert last_weights(start) == last_weights(together.folder)
    assert apart.before == together.before
    assert apart.after == together.after
    from_pretrained(start)


@pytest.mark.sim
def test_a_stage_leaves_its_loss_curve_its_errors_and_its_newest_checkpoints(together: Results) -> None:
    folder = together.folder
    names = [path.name for path in checkpoint.saved_in(folder)]
    assert names == ["autoencoder-0000040", "prior-0000014", "update-00000", "update-00001"]
    points = read_metrics(folder / "metrics.jsonl")
    for stage in ("autoencoder", "prior"):
        losses = {point.update: point.metrics for point in points if f"{stage}/loss" in point.metrics}
        assert list(losses) == list(range(1, max(losses) + 1)), "a short stage logs every step"
        errors = json.loads((folder / f"{stage}.json").read_text())
        assert set(errors) == {"training_error", "held_out_error"}
        assert losses[max(losses)][f"{stage}/held_out_error"] == errors["held_out_error"]
        assert (folder / f"{stage}.png").read_bytes().startswith(b"\x89PNG")
    assert [point.stage for point in points] == sorted((point.stage for point in points), key=EXPERIMENT.stages.index)

    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(runs[-1].info.run_id, "autoencoder/loss")
    assert [metric.step for metric in history] == list(range(1, 41))


@pytest.mark.sim
@pytest.mark.parametrize(
    ("stage", "step"),
    [("autoencoder", 0), ("autoencoder", 1), ("autoencoder", 25), ("prior", 1), ("prior", 8)],
)
def test_a_run_interrupted_in_a_stage_is_resumed_to_the_same_weights(
    stage: str, step: int, home: Path, together: Results
) -> None:
    experiment = replace(EXPERIMENT, name=f"cut-{stage}-{step}")
    with interrupted_before_recording(step == 0), pytest.raises(KeyboardInterrupt):
        run(experiment, home, Interrupting(stage, step))
    folder = only_folder(home / "runs" / experiment.name)
    assert json.loads((folder / "status.json").read_text()) == {"status": "KILLED"}
    resumed = resume_experiment(folder, HERE, view_of=lambda _: quiet())
    assert last_weights(folder) == last_weights(together.folder)
    assert resumed.after == together.after
    steps = [(point.stage, point.update, set(point.metrics)) for point in read_metrics(folder / "metrics.jsonl")]
    assert steps == [
        (point.stage, point.update, set(point.metrics)) for point in read_metrics(together.folder / "metrics.jsonl")
    ]


Change = Callable[[Path], Experiment]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda _: replace(EXPERIMENT, stages=(RIPT,)), ConfigError, "start-from must name what the stage ript"),
        (
            lambda home: replace(EXPERIMENT, stages=("prior",), start_from=home / "nothing"),
            CheckpointError,
            "there is nothing at .*nothing",
        ),
        (
            lambda home: replace(EXPERIMENT, start_from=home),
            ConfigError,
            "start-from: a run that begins with autoencoder starts from random weights",
        ),
        (
            lambda _: replace(EXPERIMENT, stages=("autoencoder", RIPT)),
            ConfigError,
            r"stages must be one or more of autoencoder, prior, ript.*not autoencoder, ript",
        ),
        (lambda _: replace(EXPERIMENT, stages=()), ConfigError, "not none"),
    ],
)
def test_an_impossible_start_is_refused_before_anything_is_written(
    change: Change, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        run(change(tmp_path), tmp_path)
    assert not (tmp_path / "runs").exists()


class InTheWay(View):
    """Puts a file in the way of the checkpoints after steps 10 and 11."""

    def __init__(self, runs: Path):
        super().__init__(ViewMode.QUIET, 1)
        self._runs = runs

    def on_step(self, name: str, num_steps: int, step: int, loss: float) -> None:
        if name == "autoencoder" and step in (10, 11):
            folder = only_folder(self._runs)
            (folder / "checkpoints" / f".autoencoder-00000{step}.unfinished").write_text("")


@pytest.mark.sim
def test_a_checkpoint_that_cannot_be_written_is_retried_with_the_next_point_of_the_loss_curve(
    home: Path, together: Results, caplog: pytest.LogCaptureFixture
) -> None:
    view = InTheWay(home / "runs" / "in-the-way")
    folder = run(replace(EXPERIMENT, name="in-the-way", stages=("autoencoder",)), home, view).folder
    assert len([text for text in caplog.messages if "cannot be written" in text and "retrying" in text]) == 2
    assert checkpoint.find(folder).name == "autoencoder-0000040"
    expected = together.folder / "checkpoints" / "autoencoder-0000040" / "policy.safetensors"
    assert last_weights(folder) == expected.read_bytes()


@pytest.mark.sim
def test_resuming_with_other_demonstrations_is_refused(home: Path) -> None:
    experiment = replace(EXPERIMENT, name="changed")
    with pytest.raises(KeyboardInterrupt):
        run(experiment, home, Interrupting("autoencoder", 25))
    folder = only_folder(home / "runs" / "changed")
    newest = checkpoint.latest_valid(folder)
    others = replace(experiment, demos=replace(experiment.demos, action_noise=0.1))
    shutil.rmtree(newest.folder)
    checkpoint.save(newest.folder, replace(newest.policy, experiment=others), newest.state)
    with pytest.raises(CheckpointError, match=r"the demonstrations are not those that .* was training on"):
        resume_experiment(folder, HERE, view_of=lambda _: quiet())


@pytest.mark.sim
@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"sensors": ("state", "relative")}, r"policy.sensors is \('relative',\) there, \('state', 'relative'\) here$"),
        ({"standardize": False}, "policy.standardize is True there, False here"),
    ],
)
def test_weights_that_would_mean_something_else_are_refused(
    policy: dict[str, Any], message: str, tmp_path: Path, together: Results
) -> None:
    settings = replace(POLICY, **policy)
    other = replace(EXPERIMENT, stages=(RIPT,), start_from=together.folder, policy=settings)
    with pytest.raises(CheckpointError, match=message):
        run(other, tmp_path)


@pytest.mark.sim
def test_a_run_that_is_unfinished_or_did_not_train_the_previous_stage_is_refused_as_a_start(home: Path) -> None:
    early = replace(EXPERIMENT, name="early", stages=("autoencoder",))
    with pytest.raises(KeyboardInterrupt):
        run(early, home, Interrupting("autoencoder", 25))
    folder = only_folder(home / "runs" / "early")
    later = replace(EXPERIMENT, stages=(RIPT,), start_from=folder)
    with pytest.raises(CheckpointError, match="has not finished; resume it, or name one of its checkpoints"):
        run(later, home)
    with pytest.raises(CheckpointError, match="ends with the stage autoencoder, but ript starts from the end of prior"):
        run(replace(later, start_from=checkpoint.find(folder)), home)


@pytest.mark.sim
def test_a_policy_of_another_size_is_refused_before_anything_is_written(tmp_path: Path, together: Results) -> None:
    other = replace(
        EXPERIMENT,
        stages=(RIPT,),
        start_from=together.folder,
        policy=replace(POLICY, prior_width=32),
    )
    with pytest.raises(CheckpointError, match=r"policy\.prior-width is \d+ there, 32 here$"):
        run(other, tmp_path)
    assert not (tmp_path / "runs").exists()
