import io
import logging
import re
import time
import warnings
from collections import Counter
from dataclasses import replace

import pytest
from rich.console import Console

from ript_ray.evaluation.comparison import Comparison
from ript_ray.evaluation.evaluate import EvaluationResult
from ript_ray.evaluation.tables import difference_line, difference_table, results_table
from ript_ray.rl.callbacks import RolloutStats, UpdateRecord
from ript_ray.rl.context_stream import ContextStream
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.learner import UpdateReport
from ript_ray.rl.ledger import Ledger
from ript_ray.rl.weights import snapshot
from ript_ray.runtime.serial import SerialRuntime
from ript_ray.tracking.console import View
from ript_ray.tracking.logs import ConsoleHandler, ViewMode, attached, console_logging
from ript_ray.types import Context, GroupSummary, Progress, Version
from tests.conftest import line_parts, tiny_quest

SUMMARY = GroupSummary(0, Version(1), (1.0,), (9,), 0)


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
    with console_logging(mode.log_level, console), View(mode, num_updates=10, console=console) as view:
        logging.getLogger("ript_ray.pipeline").info("stage 3: RIPT")
        view.on_step("prior", 100, 100, 0.5)
        view.on_group(stats(), SUMMARY, Verdict.ALL_SOLVED)
        logging.getLogger("ript_ray.runtime.actor_pool").warning("rollout actor %d failed", 2)
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


def training_view(num_tasks: int) -> str:
    """What a terminal shows of two groups of each task, the first of which failed, and of the others one."""
    tasks = [f"task-{number:02d}" for number in range(num_tasks)]
    stream = ContextStream([Context(task, "do it", (0.0,)) for task in tasks], seed=0)
    output = io.StringIO()
    view = View(ViewMode.AUTO, num_updates=10, console=Console(file=output, force_terminal=True, width=140))
    runtime = SerialRuntime(line_parts(tiny_quest), with_learner=False)
    view.start_training(EvaluationResult({"task-00": (True, False)}, 100), runtime, stream)
    for index in range(2 * num_tasks):
        reward = 0.0 if index < num_tasks and stream.at(index).task == "task-00" else 1.0
        view.on_group(stats(), replace(SUMMARY, index=index, successes=(reward, 1.0)), Verdict.ACCEPTED)
    view.on_update(record())
    return " ".join(output.getvalue().split())


def test_a_terminal_shows_the_time_the_actors_and_each_task_beside_its_success_before() -> None:
    text = training_view(num_tasks=2)
    assert re.search(r"\d min \d\d s elapsed, \d min \d\d s left, 1 of 1 actors alive", text)
    assert "(before RIPT, held out): task-00 75% (50%), task-01 100%; all tasks before RIPT: 50.0%" in text


def test_of_many_tasks_a_terminal_shows_the_worst_ones() -> None:
    text = training_view(num_tasks=9)
    assert "task-00 75% (50%), task-" in text
    assert text.split("before RIPT, held")[-1].count("task-0") == 6
    assert "better: 3 more" in text


def test_a_warning_is_printed_above_the_live_table_and_does_not_end_it() -> None:
    text = shown(ViewMode.AUTO, terminal=True)
    assert "warning: rollout actor 2 failed" in text
    after = text.split("rollout actor 2 failed")[1]
    assert "update 2 of 10" in after


def test_elsewhere_there_is_one_line_per_message_update_and_end_of_a_supervised_stage() -> None:
    for mode in (ViewMode.AUTO, ViewMode.LINES):
        text = shown(mode, terminal=False)
        assert "\x1b" not in text
        first, second, third, fourth = text.splitlines()
        assert re.fullmatch(r" +\d+\.\d s  stage 3: RIPT", first)
        assert second.startswith("prior: step 100 of 100, loss 0.5000")
        assert re.fullmatch(r" +\d+\.\d s  warning: rollout actor 2 failed", third)
        assert fourth.startswith("update 2, success 50%")
        assert re.search(r", learn s 1\.5, 0 min \d\d s elapsed, 0 min \d\d s left$", fourth)


def test_the_time_left_of_a_long_run_is_given_in_hours() -> None:
    output = io.StringIO()
    view = View(ViewMode.LINES, num_updates=15, console=Console(file=output, width=140))
    view.on_group(replace(stats(), update=1, started=time.perf_counter() - 3600), SUMMARY, Verdict.ACCEPTED)
    view.on_update(replace(record(), stats=replace(stats(), update=1)))
    assert output.getvalue().endswith(", 14 h 00 min left\n")


def test_a_quiet_view_shows_warnings_only() -> None:
    for terminal in (True, False):
        (line,) = shown(ViewMode.QUIET, terminal=terminal).splitlines()
        assert line.endswith("warning: rollout actor 2 failed")


def test_the_time_left_is_unknown_before_a_step_has_been_timed() -> None:
    output = io.StringIO()
    view = View(ViewMode.LINES, num_updates=15, console=Console(file=output, width=140))
    view.on_step("prior", 100, 1, 0.5)
    assert output.getvalue() == "prior: step 1 of 100, loss 0.5000, time left unknown\n"


def test_where_there_is_no_terminal_a_long_update_has_a_line_every_twenty_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, now = io.StringIO(), 1000.0
    view = View(ViewMode.LINES, num_updates=15, console=Console(file=output, width=140))
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    for _ in range(50):
        now += 1.0
        view.on_group(replace(stats(), started=1000.0), SUMMARY, Verdict.ACCEPTED)
    first, second, third = output.getvalue().splitlines()
    assert all(line.startswith("update 2 of 15: 6 of 12 groups accepted") for line in (first, second, third))


def test_a_supervised_stage_has_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    output, now = io.StringIO(), 1000.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    view = View(ViewMode.AUTO, 10, Console(file=output, width=140))
    for step in range(1, 31):
        now += 1.0
        view.on_step("prior", 100, step, 0.5)
    assert [line.split(",")[0] for line in output.getvalue().splitlines()] == [
        "prior: step 1 of 100",
        "prior: step 12 of 100",
        "prior: step 23 of 100",
    ]


def test_a_commands_log_shows_foreign_warnings_and_leaves_logging_as_it_was() -> None:
    output = io.StringIO()
    handlers, level = list(logging.getLogger().handlers), logging.getLogger("ript_ray").level
    with (
        console_logging(console=Console(file=output, width=140)),
        attached(ConsoleHandler(Console(file=io.StringIO()))),
    ):
        pass
    with console_logging(console=Console(file=output, width=140)):
        logging.getLogger("gymnasium").warning("[odd] :smile:")
        logging.getLogger("gymnasium").info("not shown")
        logging.getLogger("ript_ray.cli").info("shown")
        warnings.warn("deprecated soon", stacklevel=1)
    first, second, third = [line.partition(" s  ")[2] for line in output.getvalue().splitlines() if " s  " in line]
    assert first == "warning: gymnasium: [odd] :smile:"
    assert second == "shown"
    assert third.startswith("warning: ")
    assert third.endswith("UserWarning: deprecated soon")
    assert (list(logging.getLogger().handlers), logging.getLogger("ript_ray").level) == (handlers, level)


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


def test_the_seconds_of_a_command_go_on_where_another_handler_takes_over() -> None:
    first, second = (ConsoleHandler(Console(file=io.StringIO())) for _ in range(2))
    first.started -= 100
    with attached(first), attached(second):
        assert second.started == first.started
