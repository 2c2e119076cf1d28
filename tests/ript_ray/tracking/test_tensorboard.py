from pathlib import Path

import pytest

from ript_ray.tracking.tensorboard import TensorBoardTracker
from ript_ray.tracking.tracker import RunStatus
from tests.disk import full_disk
from tests.tracked import events_of, points


def test_event_files_have_the_metrics_on_every_axis_and_a_resumed_run_writes_none_twice(tmp_path: Path) -> None:
    folder = tmp_path / "tensorboard"
    interrupted = TensorBoardTracker(folder)
    for each in points(1, 2, 3):
        interrupted.log(each)  # and it is killed: what is logged is on disk
    resumed = TensorBoardTracker(folder, points(1, 2))
    for each in points(3, 4):
        resumed.log(each)
    assert resumed.close(RunStatus.FINISHED) is None
    rates = [pytest.approx(update / 10) for update in (1, 2, 3, 4)]
    steps = {
        "train/success_rate": [1, 2, 3, 4],
        "ppo/loss": [1, 2, 3, 4],
        "by_env_steps/train/success_rate": [1000, 2000, 3000, 4000],
        "by_wall_s/train/success_rate": [2, 5, 8, 10],
    }
    found = events_of(folder)
    assert {name: [step for step, _ in events] for name, events in found.items()} == steps
    assert [value for _, value in found["train/success_rate"]] == rates


def test_a_folder_that_cannot_be_written_is_said_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    tracker = TensorBoardTracker(tmp_path / "file" / "tensorboard")
    for each in points(1, 2):
        tracker.log(each)
    assert str(tracker.close(RunStatus.FINISHED)).startswith("TensorBoard's event files end early ([Errno 20] ")
    assert len(caplog.messages) == 1


def test_a_full_disk_ends_the_event_files_and_nothing_else(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path / "tensorboard")
    with full_disk(100):
        for each in points(1, 2, 3):
            tracker.log(each)
    assert "TensorBoard's event files end early ([Errno 27] " in str(tracker.close(RunStatus.FINISHED))
