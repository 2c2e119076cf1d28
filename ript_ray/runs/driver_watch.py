"""Closes a run whose process ends without a word: killed by force, out of memory, or ended by Ray's own code.

Such an end runs no line of Python there, so a small process of its own waits for it. See
docs/decisions/0017-death-from-outside.md.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

ENDED = b"ended"
EXIT_TIMEOUT_S = 5.0


class DriverWatch:
    """A process that waits for this one to end, and closes the run if it was left open."""

    def __init__(self, folder: Path):
        """Start the process.

        Args:
            folder: The run's directory.
        """
        search_path = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder.absolute()), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": search_path},
            start_new_session=True,  # a Ctrl-C in the terminal, or its end, is the driver's business
        )

    def end(self) -> None:
        """Have the process end: the run is closed."""
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(OSError):  # it has been killed: a run goes on without it
            pipe.write(ENDED)
            pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_TIMEOUT_S)


def watch(pipe: BinaryIO, path: Path, process: int) -> None:
    """Wait until the driver closes the pipe, at its death at the latest, and close its run unless it has done so.

    Args:
        pipe: From the driver.
        path: The run's folder.
        process: The driver.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # job schedulers send them to every process
    if pipe.read() == ENDED:
        return
    # Imported here: until now this process needs 14 MB.
    from ript_ray.runs.killed import close_in_store, close_killed_run
    from ript_ray.runs.run_dir import RunDir

    folder = RunDir(path)
    with contextlib.suppress(Exception):  # boundary: the next command that sees the run tries again
        if folder.status.exists():
            close_in_store(folder)
            return
        with contextlib.suppress(OSError):  # the terminal is gone
            reasons = "killed, out of memory, or with a process of Ray's"
            text = f"error: process {process} has ended without closing its run ({reasons})"
            print(f"{text}; the run goes on with ript-ray resume {path}", file=sys.stderr, flush=True)
        close_killed_run(path)


if __name__ == "__main__":
    watch(sys.stdin.buffer, Path(sys.argv[1]), int(sys.argv[2]))
