"""Evaluation results and paired differences as tables."""

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from ript_ray.evaluation.comparison import Comparison, PairedDifference
from ript_ray.evaluation.evaluate import EvaluationResult, SuccessRate


def results_table(columns: dict[str, EvaluationResult], title: str) -> Table:
    """Success with its 95 % interval and the number of rollouts, per task and in all, one column per evaluation."""
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)  # fits into 80 columns
    table.add_column("task", no_wrap=True)
    for name in (*(f"{name}, %" for name in columns), "of"):
        table.add_column(name, justify="right", no_wrap=True)
    results = list(columns.values())
    for task in results[0].per_task:
        table.add_row(task, *_cells([result.per_task[task] for result in results]))
    table.add_section()
    table.add_row("all tasks", *_cells([result.overall for result in results]), style="bold")
    return table


def difference_table(comparison: Comparison, title: str) -> Table:
    """Paired differences of B less A, with 95 % intervals and the number of pairs, per task and in all.

    won:lost are the pairs that B alone and A alone solved; p is that of McNemar's exact test.
    """
    # It fits into 80 columns, with the longest name of a task.
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True)
    table.add_column("task", no_wrap=True)
    for name in ("B - A, points", "won:lost", "p", "of"):
        table.add_column(name, justify="right", no_wrap=True)
    for task, found in comparison.per_task.items():
        table.add_row(task, *_difference_cells(found))
    table.add_section()
    table.add_row("all tasks", *_difference_cells(comparison.overall), style="bold")
    return table


def difference_line(found: PairedDifference) -> str:
    """A paired difference in a line."""
    points, _, p_value, num_pairs = _difference_cells(found)
    return f"paired difference {points} points, {num_pairs} rollouts each, McNemar p {p_value}"


def _difference_cells(found: PairedDifference) -> tuple[str, ...]:
    points = f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return points, f"{found.num_gained}:{found.num_lost}", f"{found.p_value:.1g}", str(found.num_pairs)


def _cells(rates: Sequence[SuccessRate]) -> list[str]:
    shown = [f"{100 * rate.success_rate:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]" for rate in rates]
    return [*shown, str(rates[0].num_rollouts)]
