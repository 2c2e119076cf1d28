"""How long a node that hangs goes unnoticed, in seconds; the settings come from this process's environment."""

import os
import time

import psutil
import ray
from ray.cluster_utils import Cluster

STALL_S = 4.0
"""A pause of this length is no reason to give a node up."""
STORE_BYTES = 80_000_000


class Sleeper:
    """Stands for an actor in the middle of its work."""

    def pid(self) -> int:
        """The process that it lives in."""
        return os.getpid()

    def work(self) -> None:
        """Work for longer than anybody waits."""
        time.sleep(300)


def main() -> None:
    """Start two nodes, stop every process of the second for a while, then for ever; print what came of it."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False},
    )
    cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    ray.init(address=cluster.address, log_to_driver=False)
    actor = ray.remote(num_cpus=1)(Sleeper).remote()
    raylet = psutil.Process(ray.get(actor.pid.remote(), timeout=120)).parent()
    node = [raylet, *raylet.children(recursive=True)]
    try:
        stop(node)
        time.sleep(STALL_S)
        for process in node:
            process.resume()
        ray.get(actor.pid.remote(), timeout=120)
        time.sleep(2)  # until the head has seen that the node is alive: the two pauses must not add up
        print(f"survived a pause of {STALL_S:g} s")
        call = actor.work.remote()
        stopped = time.monotonic()
        stop(node)
        try:
            ray.get(call, timeout=120)
        except ray.exceptions.RayError as error:
            print(f"{type(error).__name__} after {time.monotonic() - stopped:.1f} s")
    finally:
        for process in node:
            process.kill()
        ray.shutdown()
        cluster.shutdown()


def stop(node: list[psutil.Process]) -> None:
    """Let no process of the node do anything."""
    for process in node:
        process.suspend()


if __name__ == "__main__":
    main()
