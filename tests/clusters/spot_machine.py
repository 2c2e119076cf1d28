"""A run on a cluster that `ray start` makes: a machine joins, another one is stopped; prints the log."""

import contextlib
import logging
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from ray.util import get_node_ip_address

from ript_ray.rl.train import train
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.ray_runtime import RayRuntime
from ript_ray.runtime.ray_session import ray_session
from ript_ray.runtime.serial import SerialRuntime
from tests.clusters.test_job import free_port, stop
from tests.conftest import line_parts, line_stream
from tests.faulty import POLICY
from tests.ript_ray.runtime.test_runtimes import SAMPLING, checksums, train_on
from tests.ript_ray.scenarios.test_elastic import Events, has_actors, poll_until

RAY = Path(sys.executable).with_name("ray")
SMALL = ("--object-store-memory", "100000000", "--dashboard-agent-listen-port", "0", "--block")
DEADLINE_S = 600.0


@contextlib.contextmanager
def started(*options: str) -> Iterator[psutil.Popen]:
    """Run `ray start` as long as the block lasts, and end its processes alone: `ray stop` would end every Ray here."""
    process = psutil.Popen([str(RAY), "start", *options, *SMALL], stdout=sys.stderr)
    try:
        yield process
    finally:
        stop(process)


def await_answer(host: str, port: int) -> None:
    """Wait until something listens."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=10):
            return
        time.sleep(0.5)


def disturbed_run(cluster: Cluster, *worker: str) -> list[str]:
    """Return the weights after each update of a run during which a node joins and another one is stopped."""
    with contextlib.ExitStack() as machines:
        first = machines.enter_context(started(*worker))  # the run waits for it
        machines.enter_context(ray_session(cluster))
        runtime = RayRuntime(line_parts(POLICY), cluster)

        def one_joins() -> None:
            machines.enter_context(started(*worker))
            poll_until(runtime, lambda: has_actors(runtime, 2))

        try:
            log = Events(amid={3: lambda: stop(first)}, after={1: one_joins})
            train(runtime, line_stream(), sampling=SAMPLING, num_updates=3, seed=5, callbacks=[log])
            poll_until(runtime, lambda: has_actors(runtime, 1))
            return checksums(log)
        finally:
            runtime.close()


def main() -> None:
    """Run it, and the same without Ray."""
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    logging.getLogger("ript_ray").setLevel(logging.INFO)
    host, port = get_node_ip_address(), free_port()
    folder = tempfile.mkdtemp(prefix="ript-")  # short: Ray puts sockets there, whose paths are limited
    head = ("--head", "--port", port, "--temp-dir", folder, "--num-cpus", "0", "--include-dashboard", "false")
    try:
        with started(*head, "--ray-client-server-port", free_port()):
            await_answer(host, int(port))
            cluster = Cluster(address=f"{host}:{port}", start_timeout_s=DEADLINE_S)
            weights = disturbed_run(cluster, "--address", f"{host}:{port}", "--num-cpus", "1")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    same = weights == checksums(train_on(SerialRuntime(line_parts(POLICY))))
    print("the weights are those of an undisturbed run:", same)


if __name__ == "__main__":
    main()
