"""Environments in processes of their own, so that those of a group step side by side on several cores."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import Pipe

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import Environment
from ript_ray.rl.simulation import Outcome
from ript_ray.types import ProcessUsage


class SimulationProcessError(RuntimeError):
    """A process of environments has ended."""


class SimulationProcesses:
    """Processes that host the environments of one rollout worker; they end with it, however it ends.

    Each environment is in one process, and a group's environments are spread evenly. A process that has ended fails
    whatever runs in it; `close` and a later `make` begin anew. On Linux they also end with the thread that first used
    them, which must therefore live as long as the worker does.
    """

    def __init__(self, make_environment: Callable[[str], Environment], num_processes: int):
        """Start nothing yet.

        Args:
            make_environment: Builds the environment of a task, in the process that steps it.
            num_processes: Processes, at least 1; they start when they are needed.
        """
        self._make_environment = make_environment
        self._processes: list[_Process | None] = [None] * num_processes
        self._num_built: dict[str, int] = {}
        self._ended_s = 0.0

    @property
    def rss_bytes(self) -> int:
        """Resident memory of the processes, as they last reported it."""
        return sum(process.usage.rss_bytes for process in self._processes if process is not None)

    @property
    def cpu_s(self) -> float:
        """Processor time of the processes, those that have ended included, as they last reported it, in seconds."""
        return self._ended_s + sum(process.usage.cpu_s for process in self._processes if process is not None)

    def make(self, task: str) -> "RemoteSimulation":
        """Build an environment of a task; the next one of the same task is in the next process."""
        index = self._num_built.get(task, 0)
        self._num_built[task] = index + 1
        slot = index % len(self._processes)
        process = self._processes[slot]
        if process is None:
            process = self._processes[slot] = _Process(self._make_environment)
        return RemoteSimulation(process, task)

    def close(self) -> None:
        """Kill the processes and all that they host."""
        processes = [process for process in self._processes if process is not None]
        self._processes = [None] * len(self._processes)
        self._num_built.clear()
        for process in processes:
            process.kill()
            self._ended_s += process.usage.cpu_s


class RemoteSimulation:
    """See `Simulation`. An environment in another process, which builds it meanwhile."""

    def __init__(self, process: "_Process", task: str):
        self._process = process
        self._number = process.build(task)

    def begin(self, initial_state: tuple[float, ...]) -> None:
        self._process.call("begin", self._number, initial_state)

    def execute(self, actions_CA: NDArray[np.float32], *, is_last: bool) -> None:
        self._process.call("execute", self._number, actions_CA, is_last)

    def wait(self) -> Outcome:
        return self._process.answer()

    def close(self) -> None:
        with contextlib.suppress(SimulationProcessError):  # then it is closed
            self._process.call("close", self._number)


class _Process:
    """One process. It answers in the order in which it is called."""

    def __init__(self, make_environment: Callable[[str], Environment]):
        self._connection, theirs = Pipe()
        program = [sys.executable, "-m", "ript_ray.rl.simulation_process", str(theirs.fileno()), str(os.getpid())]
        variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._popen = subprocess.Popen(program, env=variables, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self.usage = ProcessUsage(self._popen.pid, 0, 0.0)
        self._num_built = 0
        level = logging.getLogger("ript_ray").getEffectiveLevel()
        with self._naming_its_end():
            self._connection.send_bytes(cloudpickle.dumps((level, make_environment)))

    def build(self, task: str) -> int:
        """Begin to build an environment and return its number."""
        self._num_built += 1
        self.call("build", self._num_built, task)
        return self._num_built

    def call(self, method: str, number: int, *arguments: object) -> None:
        """Have it do something with an environment."""
        with self._naming_its_end():
            self._connection.send((method, number, *arguments))

    def answer(self) -> Outcome:
        """Wait for the next answer."""
        with self._naming_its_end():
            answer, records, self.usage = self._connection.recv()
        for record in records:
            logging.getLogger(record.name).handle(record)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Outcome)
        return answer

    def kill(self) -> None:
        """End it at once."""
        self._popen.kill()
        self._popen.wait()
        self._connection.close()

    @contextlib.contextmanager
    def _naming_its_end(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            status = self._popen.wait()
            how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            raise SimulationProcessError(
                f"process {self._popen.pid}, which hosts environments, ended with {how}"
            ) from error
