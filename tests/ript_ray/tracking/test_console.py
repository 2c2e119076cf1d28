import io
import time
from collections import Counter

from rich.console import Console

from ript_ray.evaluation.comparison import Comparison
from ript_ray.evaluation.evaluate import EvaluationResult
from ript_ray.evaluation.tables import difference_line, difference_table, results_table
from ript_ray.rl.callbacks import RolloutStats, UpdateRecord
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.learner import UpdateReport
from ript_ray.rl.ledger import Ledger
from ript_ray.rl.weights import snapshot
from ript_ray.tracking.console import View, ViewMode
from ript_ray.types import GroupSummary, Progress, Version
from tests.conftest import tiny_quest


def stats() -> RolloutStats:
    verdicts = Counter({Verdict.ACCEPTED: 6, Verdict.ALL_FAILED: 2, Verdict.ALL_SOLVED: 3})
    return RolloutStats(
        2, 12, verdicts, num_rollouts=88, num_solved=44, env_steps=9000, started=time.perf_counter() - 3, rollout_s=3.0
    )


def record() -> UpdateRecord:
    report = UpdateReport(-0.1, 0.3, 0.15, 0.012, 1.0, 24, 500, 1.5)
    return UpdateRecord(
        stats=stats(),
        report=report,
        weights=snapshot(tiny_quest(), Version(2)),
        progress=Progress(2, 22),
        ledger=Ledger(dispatched=11, trained=6, uniform=5, stale=0, invalid=0, lost=0, in_flight=0),
        num_replaced=0,
        learner_state=dict,
        broadcast_s=0.1,
    )


def shown(mode: ViewMode, *, terminal: bool) -> str:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=140)
    with View(mode, num_updates=10, console=console) as view:
        view.stage("stage 3: RIPT")
        view.on_step("prior", 100, 100, 0.5)
        view.on_group(stats(), GroupSummary(0, Version(1), (1.0,), (9,), 0), Verdict.ALL_SOLVED)
        view.on_update(record())
    return output.getvalue()


def test_a_terminal_shows_update_success_verdicts_speed_and_time_left() -> None:
    text = shown(ViewMode.AUTO, terminal=True)
    for part in (
        "update 2 of 10",
        "6 of 12 groups accepted",
        "2 all failed",
        "3 all solved",
        "success 50%",
        "env steps/s",
        "s left",
    ):
        assert part in text
    assert "step 100 of 100, loss 0.5000" in text


def test_elsewhere_only_stages_are_shown_and_no_control_codes() -> None:
    for mode, terminal in ((ViewMode.AUTO, False), (ViewMode.QUIET, False)):
        text = shown(mode, terminal=terminal)
        assert text.strip().endswith("stage 3: RIPT")
        assert len(text.splitlines()) == 1
        assert "\x1b" not in text


def test_line_mode_prints_one_line_per_update_and_the_end_of_a_supervised_stage() -> None:
    lines = shown(ViewMode.LINES, terminal=False).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("prior: step 100 of 100, loss 0.5000")
    assert "update 2" in lines[2]
    assert "success 50%" in lines[2]


def test_the_results_table_shows_intervals_and_the_number_of_rollouts() -> None:
    result = EvaluationResult({"button-press-topdown-v3": (True,) * 30 + (False,) * 20}, 100)
    output = io.StringIO()
    Console(file=output, width=80).print(results_table({"before RIPT": result, "after RIPT": result}, "success"))
    assert output.getvalue().count("60.0 [46.2, 72.4]") == 4
    assert output.getvalue().split().count("50") == 2


def test_differences_are_shown_in_pairs_and_fit_into_80_columns() -> None:
    first = EvaluationResult({"button-press-topdown-wall-v3": (True,) * 20 + (False,) * 30}, 100)
    second = EvaluationResult({"button-press-topdown-wall-v3": (True,) * 15 + (False,) * 5 + (True,) * 30}, 100)
    comparison = Comparison.of(first, second)
    output = io.StringIO()
    Console(file=output, width=80).print(difference_table(comparison, "in pairs"))
    rows = [line.split() for line in output.getvalue().splitlines()]
    assert ["task", "B", "-", "A,", "points", "won:lost", "p", "of"] in rows
    for name in (["button-press-topdown-wall-v3"], ["all", "tasks"]):
        assert [*name, "+50.0", "[+28.8,", "+65.6]", "30:5", "2e-05", "50"] in rows
    line = difference_line(comparison.overall)
    assert line == "paired difference +50.0 [+28.8, +65.6] points, 50 rollouts each, McNemar p 2e-05"
    assert len(line) <= 80
