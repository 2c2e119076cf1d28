"""The boundary between a command and its user: exit codes and messages, never a traceback for what a user can mend."""

import signal
import sys
from collections.abc import Callable
from types import FrameType

from ript_ray.errors import RiptError


def run_command(command: Callable[[], int]) -> None:
    """Run a command and exit: its code, or a message without traceback and the error's code."""
    signal.signal(signal.SIGTERM, _terminate)  # what `kill` and a job's end send: leave as orderly as by Ctrl-C
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


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
