"""The files of a run after a failure: a full disk, an interrupt, a divergence."""

import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ript_ray.config.experiment import Experiment
from ript_ray.config.rl import Sampling
from ript_ray.errors import CheckpointError, DivergenceError, StorageError, WorkerError
from ript_ray.evaluation.evaluate import EvaluationResult
from ript_ray.rl.callbacks import RolloutStats, TrainResult, UpdateRecord
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.learner import UpdateReport
from ript_ray.rl.ledger import Ledger
from ript_ray.rl.protocols import RuntimeUsage
from ript_ray.rl.weights import snapshot
from ript_ray.runs import checkpoint
from ript_ray.runs.checkpoint import CheckpointClock, RunTotals, TrainingState
from ript_ray.runs.recorder import Recorder
from ript_ray.runs.run_dir import RunDir
from ript_ray.runs.run_logger import RunLogger
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.tracking.metrics_log import MetricPoint, MetricsLog, read_metrics
from ript_ray.tracking.store import Origin
from ript_ray.types import Progress, Version
from tests.conftest import TINY_QUEST
from tests.disk import full_disk

EXPERIMENT = Experiment("small", ("reach-v3",), policy=TINY_QUEST, checkpoint_every=2, keep_checkpoints="all")
SOURCE = SavedPolicy.initial(EXPERIMENT)
DISK_BYTES = 4000
"""More than the metrics log needs here, less than the weights."""


@pytest.fixture
def folder(tmp_path: Path) -> RunDir:
    """A run without trackers: they see the full disk, too, and have tests of their own."""
    return untracked(tmp_path, EXPERIMENT)


def untracked(runs: Path, experiment: Experiment) -> RunDir:
    folder = RunDir.create(runs, experiment)
    Origin(trackers=()).write(folder.path)
    return folder


def record(update: int, **broken: float) -> UpdateRecord:
    policy = SOURCE.build()
    for parameter in policy.trainable().values():
        parameter.data.fill_(broken.get("weight", float(update)))
    return UpdateRecord(
        stats=RolloutStats(update, 2, Counter({Verdict.ACCEPTED: 2}), 16, 8, 100, rollout_s=1.0),
        report=UpdateReport(
            loss=0.1,
            grad_norm=1.0,
            clip_fraction=0.0,
            approx_kl=0.0,
            mean_ratio=1.0,
            num_optimizer_steps=1,
            num_decisions=8,
            learn_s=1.0,
        ),
        weights=snapshot(policy, Version(update)),
        progress=Progress(update, 2 * update),
        ledger=Ledger(2, 2, 0, 0, 0, 0, 0),
        num_replaced=0,
        learner_state=lambda: {"exp_avg/x": np.full(3, update, np.float32)},
        broadcast_s=0.1,
        usage=RuntimeUsage(cpu_s=time.process_time()),  # it includes that of this process
    )


def an_evaluation() -> EvaluationResult:
    return EvaluationResult({"reach-v3": (True, False)}, 100)


@contextlib.contextmanager
def recording(
    folder: RunDir, source: SavedPolicy, training: TrainingState | None = None, minutes: float = math.inf
) -> Iterator[Recorder]:
    """Open logger and recorder as a run does."""
    with (
        RunLogger(folder, source.experiment, training) as run_logger,
        Recorder(
            run_logger, source, training, task_of=lambda index: "reach-v3", clock=CheckpointClock(minutes)
        ) as recorder,
    ):
        yield recorder


def end_with(folder: RunDir, work: Callable[[Recorder], None], error: type[BaseException] | None = None) -> None:
    """Run `work` in a recording, then raise `error` if given."""
    with recording(folder, SOURCE) as recorder:
        work(recorder)
        if error is not None:
            raise error


@pytest.mark.parametrize(("error", "word"), [(KeyboardInterrupt, "stopped"), (WorkerError, "failed")])
def test_a_run_that_ends_early_says_how_it_goes_on(
    folder: RunDir, error: type[BaseException], word: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(error):
        end_with(folder, lambda recorder: None, error)
    (message,) = [message for message in own_messages(caplog) if "ript-ray resume" in message]
    assert message.startswith(f"the run has {word}")
    assert message.endswith(f"ript-ray resume {folder.path}")


def own_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return this package's messages only."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("ript_ray")]


def saved(folder: RunDir) -> list[str]:
    """Return the names of all checkpoints, including unfinished ones."""
    return sorted(path.name for path in (folder.path / "checkpoints").iterdir())


def test_a_full_disk_costs_one_save_and_neither_the_run_nor_earlier_checkpoints(
    folder: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    with recording(folder, SOURCE) as recorder:
        recorder.on_evaluation(an_evaluation())
        recorder.on_update(record(1))
        with full_disk(DISK_BYTES):
            recorder.on_update(record(2))
        assert saved(folder) == ["update-00000"]
        recorder.on_update(record(3))  # no save would be due before update 4
        recorder.on_update(record(4))
        recorder.on_end(TrainResult())
    assert saved(folder) == ["update-00000", "update-00003", "update-00004"]
    (warning,) = own_messages(caplog)
    assert f"{folder.checkpoint(2)} cannot be written: " in warning
    assert "retrying after the next update" in warning
    point = checkpoint.latest_valid(folder.path)
    newest, problems = point.folder, list(point.skipped)
    assert (newest.name, problems) == ("update-00004", [])
    state = checkpoint.load_state(newest)
    assert state is not None
    assert state.totals.env_steps == 400
    failed = [
        point.metrics["faults/failed_saves"] for point in read_metrics(folder.metrics_log) if point.kind == "update"
    ]
    assert failed == [0, 0, 1, 1]


def test_older_checkpoints_go_when_a_newer_one_is_complete_and_the_best_stays(tmp_path: Path) -> None:
    source = replace(SOURCE, experiment=replace(EXPERIMENT, checkpoint_every=1, keep_checkpoints=2))
    folder = RunDir.create(tmp_path, source.experiment)
    with recording(folder, source) as recorder:
        recorder.on_evaluation(an_evaluation())
        for update, rate in {1: 0.5, 2: 0.9, 3: 0.1, 4: 0.2}.items():
            recorder.on_update(record(update))
            recorder.on_validation({"validation/success_rate": rate})
        assert saved(folder) == ["best", "update-00000", "update-00002", "update-00003", "update-00004"]
        with full_disk(DISK_BYTES):
            recorder.on_update(record(5))
        assert saved(folder) == ["best", "update-00000", "update-00002", "update-00003", "update-00004"]
        recorder.on_update(record(6))
        recorder.on_validation({"validation/success_rate": 1.0})
        recorder.on_end(TrainResult())
    assert saved(folder) == ["best", "update-00000", "update-00002", "update-00004", "update-00006"]
    assert folder.best.readlink() == Path("update-00006")


def test_checkpoints_are_also_saved_by_the_clock(folder: RunDir) -> None:
    with recording(folder, SOURCE, minutes=1e-9) as recorder:
        for update in (1, 2, 3):
            recorder.on_update(record(update))
    assert saved(folder) == [f"update-0000{update}" for update in (0, 1, 2, 3)], "not only every second one"


@pytest.mark.parametrize(("dynamic", "accepted", "num_failed"), [(True, 2, 1), (False, 3, 0)])
def test_uniform_groups_that_are_trained_do_not_count_as_rejected_in_the_results(
    tmp_path: Path, dynamic: bool, accepted: int, num_failed: int
) -> None:
    experiment = replace(EXPERIMENT, sampling=Sampling(dynamic=dynamic))
    folder, end = untracked(tmp_path, experiment), record(1)
    end.stats.dynamic, end.stats.num_uniform_trained = dynamic, 0 if dynamic else 1
    end.stats.verdicts[Verdict.ALL_FAILED] = 1
    with recording(folder, replace(SOURCE, experiment=experiment)) as recorder:
        recorder.on_update(end)
        recorder.on_end(TrainResult())
        recorder.write_results(an_evaluation(), an_evaluation(), TrainResult())
    results = json.loads(folder.results.read_text())
    assert results["groups_accepted"] == accepted
    assert results["groups_rejected"] == {"all_failed": num_failed, "all_solved": 0, "stale": 0, "invalid": 0}
    (point,) = (point for point in read_metrics(folder.metrics_log) if point.kind == "update")
    assert point.metrics["groups/all_failed"] == 1
    assert point.metrics["train/uniform_groups"] == (0 if dynamic else 1)


def test_a_last_save_that_fails_ends_the_run_with_exit_code_1_and_names_the_checkpoint(folder: RunDir) -> None:
    def work(recorder: Recorder) -> None:
        for update in (1, 2, 3):
            recorder.on_update(record(update))
        (folder.path / "checkpoints" / ".update-00003.unfinished").touch()  # in the way
        recorder.on_end(TrainResult())

    with pytest.raises(StorageError, match="update-00003 cannot be written") as caught:
        end_with(folder, work)
    assert caught.value.exit_code == 1
    assert checkpoint.latest_valid(folder.path).folder.name == "update-00002"
    assert json.loads(folder.status.read_text()) == {"status": "FAILED"}


def test_non_finite_weights_end_the_run_immediately(folder: RunDir) -> None:
    def work(recorder: Recorder) -> None:
        recorder.on_update(record(1))
        recorder.on_update(record(2, weight=np.inf))

    with pytest.raises(CheckpointError, match="not finite: policy_prior"):
        end_with(folder, work)
    assert saved(folder) == ["update-00000"]


@pytest.mark.parametrize("name", ["curve.png", "results.json", "metrics.jsonl"])
def test_a_file_that_cannot_be_written_at_the_end_is_an_error_that_names_it(folder: RunDir, name: str) -> None:
    in_the_way = {"results.json": ".results.json.unfinished"}.get(name, name)

    def work(recorder: Recorder) -> None:
        (folder.path / in_the_way).mkdir()
        recorder.on_update(record(1))
        recorder.on_end(TrainResult())
        recorder.write_results(an_evaluation(), an_evaluation(), TrainResult())

    with pytest.raises(StorageError, match=name):
        end_with(folder, work)
    assert not folder.results.exists(), "the run would count as finished"
    assert saved(folder) == ["update-00000", "update-00001"]


def test_a_first_evaluation_that_cannot_be_written_is_retried_with_the_next_checkpoint(
    folder: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = folder.path / ".before.json.unfinished"
    with recording(folder, SOURCE) as recorder:
        in_the_way.mkdir()
        recorder.on_evaluation(an_evaluation())
        assert "before.json cannot be written" in own_messages(caplog)[0]
        recorder.on_update(record(1))
        recorder.on_update(record(2))
        assert saved(folder) == ["update-00000"], "a checkpoint without before.json cannot be resumed"
        in_the_way.rmdir()
        recorder.on_update(record(3))
    assert saved(folder) == ["update-00000", "update-00003"]
    assert EvaluationResult.from_json(json.loads(folder.before.read_text())) == an_evaluation()


def test_a_metric_point_that_cannot_be_written_is_logged_and_written_later(
    folder: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    with recording(folder, SOURCE) as recorder:
        with full_disk(100):
            recorder.on_update(record(1))
        assert "metrics.jsonl cannot be written" in own_messages(caplog)[0]
        recorder.on_update(record(2))
    assert [point.update for point in read_metrics(folder.metrics_log)] == [1, 2]
    assert len(own_messages(caplog)) == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (KeyboardInterrupt, "KILLED"), (DivergenceError, "FAILED")],
)
def test_the_final_status_of_a_run_is_written(folder: RunDir, error: type[BaseException] | None, status: str) -> None:
    with contextlib.nullcontext() if error is None else pytest.raises(error):
        end_with(folder, lambda recorder: recorder.on_update(record(1)), error)
    assert json.loads(folder.status.read_text()) == {"status": status}
    assert saved(folder) == ["update-00000", "update-00001"]


def test_a_run_resumed_from_its_start_keeps_its_wall_time_and_its_first_evaluation(folder: RunDir) -> None:
    with pytest.raises(KeyboardInterrupt):
        end_with(folder, lambda recorder: recorder.on_evaluation(an_evaluation()), KeyboardInterrupt)
    (before,) = read_metrics(folder.metrics_log)
    before = MetricPoint(**{**vars(before), "wall_s": 1234.5})
    folder.metrics_log.unlink()
    MetricsLog(folder.metrics_log).append(before)

    training = checkpoint.load_state(folder.checkpoint(0))
    with recording(RunDir(folder.path), SOURCE, training) as recorder:
        assert not folder.status.exists(), "the run is active again"
        recorder.on_update(record(1))
    first, second = read_metrics(folder.metrics_log)
    assert first == before
    assert second.wall_s > 1234.5


def test_a_run_killed_before_its_first_evaluation_keeps_its_wall_time(folder: RunDir) -> None:
    checkpoint.save(folder.checkpoint(0), SOURCE, TrainingState(Progress(), RunTotals(wall_s=500.0)))
    training = checkpoint.load_state(folder.checkpoint(0))
    with recording(RunDir(folder.path), SOURCE, training) as recorder:
        recorder.on_evaluation(an_evaluation())
    (point,) = read_metrics(folder.metrics_log)
    assert point.wall_s > 500


def test_a_repeated_evaluation_appears_once_in_the_metrics_log(folder: RunDir) -> None:
    def work(recorder: Recorder) -> None:
        recorder.on_evaluation(an_evaluation())
        for update in (1, 2):
            recorder.on_update(record(update))
        recorder.on_evaluation(an_evaluation())

    with pytest.raises(KeyboardInterrupt):
        end_with(folder, work, KeyboardInterrupt)
    training = checkpoint.load_state(checkpoint.latest_valid(folder.path).folder)
    with recording(RunDir(folder.path), SOURCE, training) as recorder:
        recorder.on_evaluation(an_evaluation())
    assert [(point.update, point.kind) for point in read_metrics(folder.metrics_log)] == [
        (0, "evaluation"),
        (1, "update"),
        (2, "update"),
        (2, "evaluation"),
    ]
