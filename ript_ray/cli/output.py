"""How a command ends whose output cannot be written, as with `ript-ray doctor --json | head -1`."""

import contextlib
import os
import select
import sys
from collections.abc import Iterator

READER_IS_GONE = 1
"""Exit code of a command that stopped because nobody reads its output any more.

Source: Python's documentation of `signal`, "Note on SIGPIPE"; rich ends a program in the same way.
"""


@contextlib.contextmanager
def output_written() -> Iterator[None]:
    """Write all of standard output before the block ends; exit without a message where nobody reads it any more.

    Raises:
        OSError: It cannot be written for another reason, such as a full disk. BrokenPipeError is raised where it was
            about something else, such as a connection.
    """
    try:
        try:
            yield
        except SystemExit:  # as after --help
            _flush()
            raise
        _flush()
    except BrokenPipeError:
        if not _is_reader_gone():
            raise
        sys.exit(READER_IS_GONE)
    finally:
        _drop_what_cannot_be_written()


def _flush() -> None:
    if sys.stdout is not None:  # it is None where the process began with it closed
        sys.stdout.flush()


def _is_reader_gone() -> bool:
    """Whether standard output is a pipe or a socket whose other end is closed.

    Asking for it by writing once more would not do: what a failed write could not buffer is lost, and there may be
    nothing left to write.
    """
    poll = select.poll()
    try:
        poll.register(sys.stdout, 0)
    except (OSError, TypeError):  # it is not a file of the system, or None
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _drop_what_cannot_be_written() -> None:
    """Python would try again on exit, and print a traceback."""
    try:
        _flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
