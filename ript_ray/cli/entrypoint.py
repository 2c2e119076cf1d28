"""How a command begins, is interrupted and ends: first line, exit code, errors without a traceback."""

import contextlib
import io
import itertools
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, TypeVar

import tyro
from rich.console import Console

from ript_envs.contract import MissingPackageError
from ript_envs.gl import RenderingError, require_gl
from ript_ray.checks import require
from ript_ray.cli.output import output_written
from ript_ray.errors import CheckpointError, RiptError
from ript_ray.runtime.cluster_file import read_cluster
from ript_ray.runtime.host import let_threads_sleep

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

GIVE_UP = "stopping: what is finished is being saved; press Ctrl-C once more to give that up\n"
SHOW_CURSOR = b"\x1b[?25h"

FIELD = "benchmark.FIELD"
SECTION = "--benchmark."

logger = logging.getLogger(__name__)

Command = TypeVar("Command")


@dataclass(frozen=True)
class WithPlugins:
    """Base of the commands that read configurations of policies and benchmarks.

    Attributes:
        plugin: Policies and benchmarks of your own, as MODULE:NAME: configuration files may then name their kinds. The
            module is looked for in the current directory, too.
    """

    plugin: tuple[str, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class WithBenchmarkFields(WithPlugins):
    """Base of the commands that change fields of a benchmark which they learn from a file or an argument.

    Attributes:
        benchmark_fields: Another value of a field of the benchmark, such as --benchmark.perturbation position.
    """

    benchmark_fields: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name=FIELD, metavar="VALUE")
    ] = field(default=(), kw_only=True)

    @property
    def fields_of_benchmark(self) -> dict[str, str]:
        """The values by the fields' names."""
        return dict(each.split("=", 1) for each in self.benchmark_fields)


@dataclass(frozen=True)
class WithClusterFile:
    """Base of the commands that have a field `cluster`.

    Attributes:
        cluster_file: A TOML file with options of the cluster, such as clusters/slurm/cluster.toml; each --cluster.X
            that is given besides replaces its value.
    """

    cluster_file: Path | None = field(default=None, kw_only=True)


def at_cluster_file(command: Callable[..., Command], arguments: Sequence[str]) -> Callable[..., Command]:
    """Return a `WithClusterFile` whose default cluster is the one in the file that a command line names, if it does.

    Raises:
        ConfigError: The file cannot be read, or a value in it is not allowed.
    """
    path = value_of("--cluster-file", arguments)
    return command if path is None else partial(command, cluster_file=Path(path), cluster=read_cluster(Path(path)))


def value_of(option: str, arguments: Sequence[str]) -> str | None:
    """What follows an option on a command line, where it stands last; None if it does not stand there."""
    found = None
    for argument, following in itertools.pairwise([*arguments, "--"]):
        name, has_value, value = argument.partition("=")
        if name.replace("_", "-") == option:
            found = value if has_value else following
            require(found != "" and not found.startswith("--"), f"{option} needs a value")
    return found


def join_benchmark_fields(arguments: Sequence[str]) -> list[str]:
    """Return a command line with `--benchmark.NAME VALUE` written as the option of `WithBenchmarkFields`.

    Without a value, a field is switched on: `--benchmark.small-textures`. Which fields there are is known only once the
    benchmark is: after the command line has been read.
    """
    joined: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith(SECTION):
            joined.append(argument)
            continue
        name, has_value, value = argument.removeprefix(SECTION).partition("=")
        if not has_value:
            is_switch = not rest or rest[0].startswith("--")
            value = "true" if is_switch else rest.pop(0)
        joined += [f"--{FIELD}", f"{name.replace('-', '_')}={value}"]
    return joined


def run_command(command: Callable[[], int]) -> None:
    """Run a command and exit with its code; on an error, print the message and exit with the error's code."""
    let_threads_sleep()  # before torch is imported
    _take_any_text()
    _handle_interrupts()
    message = ""
    try:
        with output_written():
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
