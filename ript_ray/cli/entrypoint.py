"""Exit codes and error messages of the commands; errors that a user can fix are printed without a traceback."""

import signal
import sys
from collections.abc import Callable
from types import FrameType

from ript_ray.errors import RiptError


def run_command(command: Callable[[], int]) -> None:
    """Run a command and exit with its code; on an error, print the message and exit with the error's code."""
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


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
