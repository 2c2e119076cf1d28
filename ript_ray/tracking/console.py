"""Progress of a run on the console: a live table in a terminal, lines elsewhere. Renders only; messages are logged."""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ript_ray.evaluation.evaluate import EvaluationResult
from ript_ray.rl.callbacks import RolloutStats, UpdateRecord
from ript_ray.rl.context_stream import ContextStream
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.protocols import Runtime
from ript_ray.runtime.heartbeat import HEARTBEAT_S, in_minutes
from ript_ray.tracking.logs import ConsoleHandler, ViewMode, attached
from ript_ray.tracking.training_status import TrainingStatus
from ript_ray.types import GroupSummary

SHOWN_UPDATES = 12
LINE_EVERY_S = 10.0
"""Interval between two lines of a supervised stage, in seconds."""


class View:
    """Training callback that shows steps, updates and the current rollouts.

    As a context manager it also prints log records, so that they do not tear the live table.
    """

    def __init__(self, mode: ViewMode, num_updates: int, console: Console | None = None):
        """Choose how to render; nothing is drawn before the first callback."""
        self.console = console or Console()
        self._live_mode = mode is ViewMode.AUTO and self.console.is_terminal
        self._lines = mode is ViewMode.LINES or (mode is ViewMode.AUTO and not self._live_mode)
        self._num_updates = num_updates
        self._status = TrainingStatus(num_updates)
        self._rows: deque[tuple[str, ...]] = deque(maxlen=SHOWN_UPDATES)
        self._live: Live | None = None
        self._live_lock = threading.RLock()  # records may come from other threads
        self._handler = ConsoleHandler(self.console, self._before_line)
        self._exit = contextlib.ExitStack()
        self._last_drawn = 0.0
        self._stage = ""
        self._stage_begun = (0.0, 0)

    def __enter__(self) -> "View":
        self._exit.enter_context(attached(self._handler))
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()
        self._stop_live()

    def start_training(self, before: EvaluationResult, runtime: Runtime, stream: ContextStream) -> None:
        """Say what is trained, from then on; see `TrainingStatus.start`."""
        self._status.start(before, runtime, stream)

    def on_step(self, name: str, num_steps: int, step: int, loss: float) -> None:
        """Show progress of a supervised stage."""
        now = time.perf_counter()
        if name != self._stage:
            self._stage, self._stage_begun = name, (now, step)
        began, first = self._stage_begun
        left = "time left unknown"
        if step > first:
            left = f"{in_minutes((now - began) / (step - first) * (num_steps - step))} left"
        text = f"{name}: step {step} of {num_steps}, loss {loss:.4f}, {left}"
        if self._live_mode:
            self._draw(lambda: Group(Text(text), _bar(num_steps, step)), force=step == num_steps)
        elif self._lines and (step == num_steps or now - self._last_drawn > LINE_EVERY_S):
            self._print(text)

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        """Show the rollouts of the current update."""
        self._status.add_group(stats, summary)
        if self._live_mode:
            self._draw(lambda: self._training(stats))
        elif self._lines and time.perf_counter() - self._last_drawn > HEARTBEAT_S:
            self._print(f"{self._status.of_update(stats)}, {self._status.of_time()}")

    def on_update(self, record: UpdateRecord) -> None:
        """Add a finished update."""
        self._status.add_update(record)
        self._rows.append(_row(record))
        if self._lines:
            cells = [f"{name} {cell}" for name, cell in zip(COLUMNS, _row(record), strict=True)]
            self._print(", ".join([*cells, self._status.of_time()]))
        if self._live_mode:
            self._draw(lambda: self._training(record.stats), force=True)

    def _training(self, stats: RolloutStats) -> Group:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in COLUMNS:
            table.add_column(column, justify="right")
        for row in self._rows:
            table.add_row(*row)
        texts = (self._status.of_update(stats), self._status.of_time(), self._status.of_tasks())
        lines = [Text(text) for text in texts if text]
        return Group(table, _bar(self._num_updates, self._status.progress(stats)), *lines)

    def _print(self, line: str) -> None:
        self._last_drawn = time.perf_counter()
        self.console.print(line, highlight=False, soft_wrap=True)

    def _draw(self, body: Callable[[], Group], *, force: bool = False) -> None:
        now = time.perf_counter()
        if not force and now - self._last_drawn < 0.1:
            return
        self._last_drawn = now
        with self._live_lock:
            if self._live is None:
                self._live = Live(console=self.console, auto_refresh=False)
                self._live.start()
            self._live.update(body(), refresh=True)

    def _before_line(self, record: logging.LogRecord) -> None:
        """End the live table before a message about the next step; warnings are printed above it."""
        if record.levelno < logging.WARNING:
            self._stop_live()

    def _stop_live(self) -> None:
        with self._live_lock:
            if self._live is not None:
                self._live.stop()
                self._live = None


def _bar(total: float, done: float) -> Table:
    grid = Table.grid()  # a bare bar does not end its line
    grid.add_row(ProgressBar(total, done, width=60))
    return grid


COLUMNS = ("update", "success", "accepted", "failed", "solved", "env steps/s", "KL", "clipped", "rollouts s", "learn s")


def _row(record: UpdateRecord) -> tuple[str, ...]:
    stats, report = record.stats, record.report
    return (
        str(stats.update),
        f"{stats.success_rate:.0%}",
        str(stats.verdicts[Verdict.ACCEPTED]),
        str(stats.verdicts[Verdict.ALL_FAILED]),
        str(stats.verdicts[Verdict.ALL_SOLVED]),
        f"{stats.env_steps / stats.rollout_s:,.0f}",
        f"{report.approx_kl:.3f}",
        f"{report.clip_fraction:.0%}",
        f"{stats.rollout_s:.1f}",
        f"{report.learn_s:.1f}",
    )
