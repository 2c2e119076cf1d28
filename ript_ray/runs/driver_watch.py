"""Closes a run whose process ends without a word: killed by force, out of memory, or ended by Ray's own code.

Such an end runs no line of Python there, so a small process of its own waits for it. See
docs/decisions/0017-death-from-outside.md.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from ript_ray.runs.run_dir import RunDir
    from ript_ray.tracking.mlflow_run import Identity

ENDED = b"ended"
EXIT_TIMEOUT_S = 5.0


class DriverWatch:
    """A process that waits, as long as this one lives, and does what this one then has left undone."""

    def __init__(self, folder: Path, identity: "Identity"):
        """Start the process.

        Args:
            folder: The run's directory.
            identity: The run in the tracking store.
        """
        search_path = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": search_path},
            start_new_session=True,  # a Ctrl-C in the terminal, or its end, is the driver's business
        )
        run = {"folder": str(folder.absolute()), "process": os.getpid(), "identity": asdict(identity)}
        self._tell(json.dumps(run).encode() + b"\n")

    def end(self) -> None:
        """Have the process end: the run is closed."""
        self._tell(ENDED)
        with contextlib.suppress(OSError):
            self._pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_TIMEOUT_S)

    @property
    def _pipe(self) -> Any:
        return self._process.stdin

    def _tell(self, words: bytes) -> None:
        with contextlib.suppress(OSError):  # it has been killed: a run goes on without it
            self._pipe.write(words)
            self._pipe.flush()


def watch(pipe: BinaryIO) -> None:
    """Wait until the driver closes the pipe, at its death at the latest, and close its run unless it has done so."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # job schedulers send them to every process
    run = json.loads(pipe.readline() or "null")
    if run is None or pipe.read() == ENDED:
        return
    # Imported here: until now this process needs 14 MB.
    from ript_ray.errors import RiptError
    from ript_ray.runs.run_dir import RunDir

    folder = RunDir(Path(run["folder"]))
    try:
        with folder.lock():
            status = _close(folder, run["process"])
    except RiptError:
        return  # it has been resumed, or is not there any more
    _close_tracking(folder, run["identity"], status)


def _close(folder: "RunDir", process: int) -> str:
    """Write how the run ended, unless its process has; return it."""
    from ript_ray.errors import StorageError
    from ript_ray.tracking.tracker import RunStatus

    if folder.status.exists():
        return str(json.loads(folder.status.read_text())["status"])
    with contextlib.suppress(OSError):  # the terminal is gone
        reasons = "killed, out of memory, or with a process of Ray's"
        text = f"error: process {process} has ended without closing its run ({reasons})"
        print(f"{text}; the run goes on with ript-ray resume {folder.path}", file=sys.stderr, flush=True)
    with contextlib.suppress(StorageError):  # the disk is full: all else is done
        folder.write_status(RunStatus.KILLED)
    return RunStatus.KILLED


def _close_tracking(folder: "RunDir", identity: dict[str, Any], status: str) -> None:
    from ript_ray.tracking.mlflow_run import Identity, MlflowRun

    with contextlib.suppress(Exception):  # boundary: without a store, `resume` and `sync-tracking` close it later
        run = MlflowRun(Identity(**identity))
        if folder.status.exists():  # otherwise the run has been resumed by now, and its process tracks it
            run.end(status)


if __name__ == "__main__":
    watch(sys.stdin.buffer)
