"""Evaluation results and paired differences as tables."""

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from ript_ray.evaluation.comparison import Comparison, PairedDifference
from ript_ray.evaluation.evaluate import EvaluationResult, SuccessRate
from ript_ray.evaluation.summary import Estimate, Summary, TaskSummary


def results_table(columns: dict[str, EvaluationResult], title: str) -> Table:
    """Success rates with 95 % intervals, per task and overall, one column per evaluation."""
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)  # fits 80 columns
    table.add_column("task", overflow="fold")
    for name in (*(f"{name}, %" for name in columns), "of"):
        table.add_column(name, justify="right", no_wrap=True)
    results = list(columns.values())
    for task in results[0].per_task:
        table.add_row(task, *rate_cells([result.per_task[task] for result in results]))
    table.add_section()
    table.add_row("all tasks", *rate_cells([result.overall for result in results]), style="bold")
    return table


def suites_table(suites: dict[str, EvaluationResult], title: str) -> Table:
    """Success rates with 95 % intervals per suite of tasks, and the mean over the suites, as papers report it."""
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("suite", no_wrap=True)
    for name in ("success, %", "of", "tasks"):
        table.add_column(name, justify="right", no_wrap=True)
    for suite, result in suites.items():
        table.add_row(suite, *rate_cells([result.overall]), str(len(result.outcomes)))
    table.add_section()
    rates = [result.overall.success_rate for result in suites.values()]
    table.add_row("mean of the suites", f"{100 * sum(rates) / len(rates):.1f}", "", "", style="bold")
    return table


def difference_table(comparison: Comparison, title: str) -> Table:
    """Paired differences B - A with 95 % intervals, per task and overall.

    won:lost counts the pairs in which only B and only A succeeded; p is of McNemar's exact test, that of a task after
    Holm's correction for the number of tasks.
    """
    # Fits 80 columns, even with the longest task name.
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True)
    table.add_column("task", overflow="fold")
    for name in ("B - A, points", "won:lost", "p", "of"):
        table.add_column(name, justify="right", no_wrap=True)
    for task, difference in comparison.per_task.items():
        table.add_row(task, *_difference_cells(difference, comparison.holm_p_values[task]))
    table.add_section()
    table.add_row("all tasks", *_difference_cells(comparison.overall), style="bold")
    return table


def summary_table(summary: Summary) -> Table:
    """Success before and after, the worst seed and the gain, per task and overall, over several seeds."""
    which = "the same" if summary.shares_contexts else "other"
    title = (
        f"seeds {', '.join(map(str, summary.seeds))}; {summary.num_contexts} contexts per task, {which} for each seed; "
        f"worst: seed {summary.worst_seed}"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True)
    table.add_column("task", overflow="fold")
    for name in ("before, %", "after, %", "worst", "gain, points"):
        table.add_column(name, justify="right", no_wrap=True)
    for task, each in summary.per_task.items():
        table.add_row(task, *_summary_cells(each))
    table.add_section()
    table.add_row("all tasks", *_summary_cells(summary.overall), style="bold")
    return table


def _summary_cells(summary: TaskSummary) -> list[str]:
    after, gain = summary.after, summary.gain
    return [
        f"{100 * summary.before.mean:.1f}",
        estimate_cell(after),
        f"{100 * after.worst:.1f}",
        estimate_cell(gain, "+.1f"),
    ]


def estimate_cell(estimate: Estimate, form: str = ".1f") -> str:
    """Return a mean over seeds in %, or in points, with its 95 % interval."""
    mean, low, high = (format(100 * value, form) for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]"


def difference_line(difference: PairedDifference) -> str:
    """Summarize a paired difference in one line."""
    points, _, p_value, num_pairs = _difference_cells(difference)
    return f"paired difference {points} points, {num_pairs} rollouts each, McNemar p {p_value}"


def _difference_cells(difference: PairedDifference, p_value: float | None = None) -> tuple[str, ...]:
    points = f"{100 * difference.difference:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    won_lost = f"{difference.num_gained}:{difference.num_lost}"
    return points, won_lost, f"{difference.p_value if p_value is None else p_value:.1g}", str(difference.num_pairs)


def rate_cells(rates: Sequence[SuccessRate]) -> list[str]:
    """Return success in % with its interval, for each of several rates, and their common sample size."""
    cells = [f"{100 * rate.success_rate:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]" for rate in rates]
    return [*cells, str(rates[0].num_rollouts)]
