"""Starts Ray's processes on a busy machine, on which they take longer than Ray waits for them."""

import contextlib
import os
import random
import re
import socket
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from ray._private import parameter, ray_constants, services

from ript_ray.errors import WorkerError

START_TIMEOUT_S = 120.0
"""Within this time Ray's processes start on this machine. Ray itself gives up after 30 s."""

CHECK_S = 0.2

PORTS = range(20_000, 32_000)
"""Between those of Ray's workers and those that Linux gives to whoever asks for any."""

AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
"""Ports of the agents beside a raylet."""

AGENT_TIMEOUT = "RAY_agent_register_timeout_ms"
"""How long a raylet waits for its agents, as an environment variable; by default 30 s."""


@contextlib.contextmanager
def patient_start() -> Iterator[None]:
    """Give the processes that Ray starts in this block `START_TIMEOUT_S`; Ray has no options for all of that."""
    ask, start, before = services.get_node, services.start_ray_process, os.environ.get(AGENT_TIMEOUT)

    def get_node(*arguments: Any) -> Any:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError):  # it is still starting
                return ask(*arguments)
            time.sleep(CHECK_S)
        return ask(*arguments)

    def start_process(command: list[str], process_type: str, *arguments: Any, **options: Any) -> Any:
        if process_type == ray_constants.PROCESS_TYPE_RAYLET:  # which Ray does not tell this one
            (port,) = {port for part in command for port in re.findall(r"--listen-port=(\d+)", part)}
            command = [*command, f"--dashboard_agent_listen_port={port}"]
        return start(command, process_type, *arguments, **options)

    os.environ.setdefault(AGENT_TIMEOUT, f"{1000 * START_TIMEOUT_S:.0f}")
    try:
        with contextlib.ExitStack() as patches:
            patches.enter_context(replaced(services, "get_node", get_node))
            patches.enter_context(replaced(services, "start_ray_process", start_process))
            patches.enter_context(replaced(parameter, "RayParams", _ParamsWithPorts))
            yield
    finally:
        if before is None:
            del os.environ[AGENT_TIMEOUT]


class _ParamsWithPorts(parameter.RayParams):  # type: ignore[misc]
    """A raylet crashes unless its agents have chosen their ports within 15 s; these are chosen already.

    Source: https://github.com/ray-project/ray/issues/65983.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        for name, port in zip(AGENT_PORTS, free_ports(len(AGENT_PORTS)), strict=True):
            if not options.get(name):
                setattr(self, name, port)


def free_ports(number: int) -> list[int]:
    """Return ports on which nothing listens, and which no system gives to a program that asks for any port.

    So nobody else takes one of them before the process that is told of it does.
    """
    ports: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):  # of its own: programs seed the other one
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            ports.append(port)
        if len(ports) == number:
            return ports
    raise WorkerError(f"fewer than {number} of the ports {PORTS.start} to {PORTS.stop - 1} are free")


@contextlib.contextmanager
def replaced(module: ModuleType, name: str, value: object) -> Iterator[None]:
    """Replace a module's attribute until the block ends."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
