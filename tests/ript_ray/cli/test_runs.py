"""The table of runs, from small folders as runs leave them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ript_ray.config.experiment import Experiment
from ript_ray.errors import CheckpointError
from ript_ray.runs.overview import RunOverview, RunState, overview
from ript_ray.runs.run_dir import RunDir
from ript_ray.tracking.metrics_log import MetricPoint, MetricsLog
from tests.commands import ript_ray_here
from tests.ript_ray.cli.test_main import text_of
from tests.ript_ray.test_package import HEAVY, run_python

EXPERIMENT = Experiment("small", ("reach-v3",), num_updates=4)


def success(rate: float) -> dict[str, object]:
    return {"success_rate": rate}


def create(runs: Path, *, status: str | None = None, results: object = None, num_updates: int = 0) -> RunDir:
    folder = RunDir.create(runs, EXPERIMENT, changes={"clip-high": "0.28"})
    log = MetricsLog(folder.metrics_log)
    log.append(MetricPoint(20, 0, 60.0, 1, {"prior/loss": 1.0}, "stage", "prior"))
    for update in range(1, num_updates + 1):
        log.append(MetricPoint(update, 1000 * update, 60.0 * (1 + update), 1, {"train/num_rollouts": 96}, "update"))
    if num_updates:
        folder.before.write_text(json.dumps(success(0.5)))
    if status:
        folder.status.write_text(json.dumps({"status": status}))
    if results:
        folder.results.write_text(json.dumps(results))
    return folder


def only(runs: Path) -> RunOverview:
    (found,) = overview(runs)
    return found


def test_a_finished_run_shows_what_changed_what_came_of_it_and_what_it_cost(tmp_path: Path) -> None:
    results = {"before": success(0.5), "after": success(0.75)}
    folder = create(tmp_path, status="FINISHED", results=results, num_updates=4)
    assert only(tmp_path) == RunOverview(
        folder.path, RunState.FINISHED, "", "clip-high=0.28", 0.5, 0.75, num_rollouts=384, env_steps=4000, wall_s=300.0
    )
    assert only(tmp_path).gain == 0.25
    assert overview(folder.path.parent) == overview(folder.path) == overview(tmp_path)  # and no row for `latest`


def test_a_finished_run_without_post_training_has_a_success_rate_and_no_gain(tmp_path: Path) -> None:
    create(tmp_path, status="FINISHED", results={"success": success(0.6)})
    assert (only(tmp_path).before, only(tmp_path).after, only(tmp_path).gain) == (None, 0.6, None)


UNFINISHED: dict[str, tuple[str | None, RunState]] = {
    "ended by its user": ("KILLED", RunState.INTERRUPTED),
    "ended by an error": ("FAILED", RunState.FAILED),
    "killed without a chance to say so": (None, RunState.INTERRUPTED),
}


@pytest.mark.parametrize("case", UNFINISHED)
def test_an_unfinished_run_shows_how_it_ended_and_how_far_it_is(case: str, tmp_path: Path) -> None:
    status, state = UNFINISHED[case]
    create(tmp_path, status=status, num_updates=2)
    found = only(tmp_path)
    assert (found.state, found.detail, found.before, found.gain) == (state, "update 2 of 4", 0.5, None)


def test_a_run_in_progress_is_known_by_its_lock_and_looking_at_it_does_not_take_the_lock(tmp_path: Path) -> None:
    folder = create(tmp_path)
    with folder.lock():
        assert (only(tmp_path).state, only(tmp_path).detail) == (RunState.RUNNING, "prior, step 20")
    with folder.lock():
        pass
    assert only(tmp_path).state is RunState.INTERRUPTED


DAMAGE: dict[str, tuple[Callable[[RunDir], object], str]] = {
    "no configuration": (lambda run: run.config.unlink(), "config.json is missing"),
    "half a configuration": (lambda run: run.config.write_text("{"), "config.json cannot be read"),
    "a configuration that is a list": (
        lambda run: run.config.write_text("[]"),
        "config.json cannot be read: it is JSON, but no object",
    ),
    "results of another kind": (lambda run: run.results.write_text('{"after": 3}'), "not subscriptable"),
    "a status in another encoding": (lambda run: run.status.write_bytes(b"\xff"), "status.json cannot be read"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_run_is_a_row_that_says_so_and_the_others_are_shown(case: str, tmp_path: Path) -> None:
    damage, what = DAMAGE[case]
    damage(create(tmp_path, num_updates=1))
    create(tmp_path, num_updates=2)
    damaged, sound = overview(tmp_path)
    assert damaged.state is RunState.DAMAGED
    assert what in damaged.detail
    assert sound.state is RunState.INTERRUPTED


def test_damaged_lines_of_metrics_are_counted(tmp_path: Path) -> None:
    folder = create(tmp_path, num_updates=1)
    folder.metrics_log.write_bytes(b"garbage\n" + folder.metrics_log.read_bytes())
    assert only(tmp_path).detail == "update 1 of 4 (damaged lines in metrics.jsonl: 1)"


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no folder .*nowhere"):
        overview(tmp_path / "nowhere")


def test_the_command_prints_one_table_per_experiment_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # parallel tests have it
    create(tmp_path / "runs", status="KILLED", num_updates=2)
    result = ript_ray_here("runs", cwd=tmp_path)
    assert result.returncode == 0
    for part in ("small", "interrupted: update 2 of 4", "clip-high=0.28", "50.0", "192", "2k", "3.0"):
        assert part in text_of(result)
    assert "ript-ray resume RUN" in text_of(result)
    (tmp_path / "empty").mkdir()
    assert "there are no runs in empty" in text_of(ript_ray_here("runs", "empty", cwd=tmp_path))


def test_listing_runs_imports_nothing_that_takes_seconds(tmp_path: Path) -> None:
    create(tmp_path)
    code = (
        "import json, sys; from pathlib import Path; from ript_ray.cli.runs import Runs\n"
        f"Runs(Path({str(tmp_path)!r})).run()\n"
        f"print(json.dumps([name for name in {HEAVY} if name in sys.modules and name != 'numpy']))"
    )
    assert run_python(code).splitlines()[-1] == "[]"
