"""Log records on the console: one line each, with the seconds since the start, warnings and errors marked as such."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from enum import StrEnum

from rich.console import Console

PACKAGE = "ript_ray"


class ViewMode(StrEnum):
    """How much progress is shown.

    `auto` is a live table in a terminal and `lines` elsewhere; `lines` prints one line per update and, in supervised
    stages, every 10 s; `quiet` shows no progress, and of the log only warnings and errors.
    """

    AUTO = "auto"
    LINES = "lines"
    QUIET = "quiet"

    @property
    def log_level(self) -> int:
        """Lowest level of log records that a command prints."""
        return logging.WARNING if self is ViewMode.QUIET else logging.INFO


class ConsoleHandler(logging.Handler):
    """Prints records of this package and, from the root logger's level on, of all others."""

    def __init__(self, console: Console, before: Callable[[logging.LogRecord], None] = lambda record: None):
        """Start the clock.

        Args:
            console: Where lines are printed.
            before: Called before each line, to make way for it.
        """
        super().__init__()
        self._console = console
        self._before = before
        self.started = time.time()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        try:
            self._before(record)
            elapsed_s = max(0.0, record.created - self.started)
            level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
            is_ours = record.name.partition(".")[0] in (PACKAGE, "py", "root")  # py.warnings name their source
            source = "" if is_ours else f"{record.name}: "
            text = f"{elapsed_s:6.1f} s  {level}{source}{self.format(record).rstrip()}"
            self._console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)
        except Exception:  # boundary, as in all of logging's handlers
            self.handleError(record)


@contextlib.contextmanager
def attached(handler: ConsoleHandler) -> Iterator[None]:
    """Attach a handler to the root logger until the block ends, in place of other console handlers, on their clock."""
    root = logging.getLogger()
    others = [other for other in root.handlers if isinstance(other, ConsoleHandler)]
    handler.started = min([handler.started, *(other.started for other in others)])
    for other in others:
        root.removeHandler(other)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        for other in others:
            root.addHandler(other)


@contextlib.contextmanager
def console_logging(level: int = logging.INFO, console: Console | None = None) -> Iterator[None]:
    """Print log records and warnings on the console until the block ends: logging set-up of a command.

    Args:
        level: Lowest level of this package's records.
        console: Where lines are printed, by default stdout.
    """
    package = logging.getLogger(PACKAGE)
    level_before = package.level
    package.setLevel(level)
    logging.captureWarnings(True)
    try:
        with attached(ConsoleHandler(console or Console())):
            yield
    finally:
        logging.captureWarnings(False)
        package.setLevel(level_before)
