"""Exit codes and error messages of the commands; errors that a user can fix are printed without a traceback."""

import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from ript_ray.errors import RiptError
from ript_ray.runtime.host import let_threads_sleep


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
    signal.signal(signal.SIGTERM, _terminate)  # sent by `kill` and job schedulers: shut down as on Ctrl-C
    try:
        code = command()
    except RiptError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


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


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
