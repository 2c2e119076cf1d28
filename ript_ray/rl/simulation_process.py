"""A process that hosts environments of a rollout worker; `simulation_processes` starts it as a program.

It ends when its parent does: at the end of its input, or, where the system offers that, by a signal, which reaches it
in the midst of a simulator's endless loop as well.
"""

import copy
import ctypes
import logging
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import Environment
from ript_ray.rl.process_usage import process_usage
from ript_ray.rl.simulation import LocalSimulation, Outcome

PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl: the signal that a process gets when its parent ends."""

ANSWERED = ("begin", "execute")
"""What the parent waits for; of the rest, only failures are said, in the log."""

logger = logging.getLogger("ript_ray.rl.simulation_process")  # this module is the program itself


class RecordBuffer(logging.Handler):
    """Keeps log records until they travel with an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record in a form that can be pickled."""
        record.msg, record.args = self.format(record), None
        record.exc_info = record.exc_text = record.stack_info = None
        self.records.append(record)

    def take(self) -> list[logging.LogRecord]:
        """Return the records, and forget them."""
        records, self.records = self.records, []
        return records


class Host:
    """The environments of this process, by number."""

    def __init__(self, make_environment: Callable[[str], Environment]):
        self._make = make_environment
        self._simulations: dict[int, LocalSimulation | Exception] = {}

    def build(self, number: int, task: str) -> None:
        """Build an environment; if that fails, it is said where an episode is to begin."""
        try:
            self._simulations[number] = LocalSimulation(self._make(task))
        except Exception as error:  # boundary: simulators raise anything
            self._simulations[number] = error

    def begin(self, number: int, initial_state: tuple[float, ...]) -> Outcome:
        """Begin an episode and return its first observation."""
        simulation = self._simulation(number)
        simulation.begin(initial_state)
        return simulation.wait()

    def execute(self, number: int, actions_CA: NDArray[np.float32], is_last: bool) -> Outcome:
        """Execute a chunk of actions and return what they led to."""
        simulation = self._simulation(number)
        simulation.execute(actions_CA, is_last=is_last)
        return simulation.wait()

    def close(self, number: int) -> None:
        """Release an environment."""
        simulation = self._simulations.pop(number)
        if isinstance(simulation, LocalSimulation):
            simulation.close()

    def _simulation(self, number: int) -> LocalSimulation:
        simulation = self._simulations[number]
        if isinstance(simulation, Exception):
            raise simulation
        return simulation


def serve(connection: Connection) -> None:
    """Call the methods of `Host` that the parent asks for, and answer some, until it closes the connection."""
    log_level, make_environment = connection.recv()  # pickled by cloudpickle
    buffer = RecordBuffer()
    logging.getLogger().addHandler(buffer)
    logging.getLogger("ript_ray").setLevel(log_level)
    logging.captureWarnings(True)
    host = Host(make_environment)
    while True:
        try:
            method, number, *arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = getattr(host, method)(number, *arguments)
        except Exception as error:  # boundary: the parent raises it
            answer = _portable(error)
        if method in ANSWERED:
            connection.send((answer, buffer.take(), process_usage()))
        elif isinstance(answer, Exception):
            logger.warning("%s of an environment failed: %s: %s", method, type(answer).__name__, answer)


def _portable(error: Exception) -> Exception:
    """Return an exception that can be pickled, with its traceback as a note."""
    try:
        pickle.dumps(error)
        copy.copy(error)
    except Exception:  # its class cannot be imported, or takes other arguments than it keeps
        error = RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)
    error.add_note(f"in process {os.getpid()}, which hosts environments:\n{''.join(traceback.format_exception(error))}")
    return error


def end_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the system signal this process when its parent ends; where it can not, the end of input has to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it ended before
        sys.exit()


if __name__ == "__main__":
    end_with_parent(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    serve(Connection(int(sys.argv[1])))
