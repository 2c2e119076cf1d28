"""How a command begins, is interrupted and ends: first line, exit code, errors without a traceback."""

import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from ript_envs.contract import MissingPackageError
from ript_envs.gl import RenderingError, require_gl
from ript_ray.errors import CheckpointError, RiptError
from ript_ray.runtime.host import let_threads_sleep

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

GIVE_UP = "stopping: what is finished is being saved; press Ctrl-C once more to give that up\n"
SHOW_CURSOR = b"\x1b[?25h"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WithPlugins:
    """Base of the commands that read configurations of policies and benchmarks.

    Attributes:
        plugin: Policies and benchmarks of your own, as MODULE:NAME: configuration files may then name their kinds. The
            module is looked for in the current directory, too.
    """

    plugin: tuple[str, ...] = field(default=(), kw_only=True)


def run_command(command: Callable[[], int]) -> None:
    """Run a command and exit with its code; on an error, print the message and exit with the error's code."""
    let_threads_sleep()  # before torch is imported
    _take_any_text()
    _handle_interrupts()
    message = ""
    try:
        code = command()
    except (RiptError, MissingPackageError, RenderingError, OSError) as error:
        message, code = f"error: {error}", getattr(error, "exit_code", 1)
    except KeyboardInterrupt:
        message, code = "interrupted", INTERRUPTED
    if message:
        with contextlib.suppress(OSError):  # the terminal is gone
            print(message, file=sys.stderr, flush=True)
    sys.exit(code)


def begin_loading(*paths: Path) -> None:
    """Print a command's first line, before it imports torch, Ray or a simulator; that takes seconds.

    Args:
        paths: What the command reads.

    Raises:
        CheckpointError: There is nothing at one of the paths.
        RenderingError: MUJOCO_GL is wrong.
    """
    for path in paths:
        if not path.exists():
            raise CheckpointError(f"there is nothing at {path}")
    require_gl()
    logger.info("loading torch and other packages")


def import_plugin(reference: str) -> Any:
    """Import what a command line names as MODULE:NAME; the module is looked for in the current directory, too.

    Raises:
        ConfigError: It is not of that form, or cannot be imported.
    """
    from ript_ray.config.experiment import load_plugin

    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return load_plugin(reference)


def register_plugins(references: Iterable[str]) -> None:
    """Make policies and benchmarks known that a command line names as MODULE:NAME.

    Raises:
        ConfigError: One cannot be imported, or is neither a policy nor a benchmark.
    """
    for reference in references:
        from ript_ray.config.experiment import register

        register(import_plugin(reference))


def print_line(console: Console, text: str) -> None:
    """Print text as it is: paths are neither colored nor wrapped."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _take_any_text() -> None:
    """Have an output that cannot encode a character, as in the locale C, print a question mark in its place."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _handle_interrupts() -> None:
    """Stop on Ctrl-C, on SIGTERM (`kill`, job schedulers) and on SIGHUP (the terminal is gone); see `_Interrupt`."""
    interrupt = _Interrupt()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it, and `&` in a script
            signal.signal(number, interrupt)


class _Interrupt:
    """The first signal raises KeyboardInterrupt, and the command saves; a second Ctrl-C warns, a third one ends it."""

    def __init__(self) -> None:
        self._is_stopping = False
        self._is_warned = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if not self._is_stopping:
            self._is_stopping = True
            raise KeyboardInterrupt
        if number != signal.SIGINT:
            return
        if self._is_warned:
            if sys.stdout.isatty():
                os.write(1, SHOW_CURSOR)  # a live view may have hidden it
            os._exit(INTERRUPTED)
        self._is_warned = True
        os.write(2, GIVE_UP.encode())  # not print: it may be what was interrupted
