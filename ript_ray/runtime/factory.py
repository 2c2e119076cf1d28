"""Open the runtime that a cluster configuration selects."""

import contextlib
import platform
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from ript_ray.rl.protocols import Components, Runtime
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.host import memory_bytes, num_cpus, processor
from ript_ray.runtime.ray_runtime import RayRuntime
from ript_ray.runtime.ray_session import node_cpus, ray_session
from ript_ray.runtime.serial import SerialRuntime


def require_fit(cluster: Cluster, num_learners: int) -> None:
    """Check, before anything is started, that a cluster can run that many learners.

    Raises:
        ConfigError: It cannot.
    """
    if cluster.in_process:
        SerialRuntime.require_fit(num_learners)


def session(cluster: Cluster) -> contextlib.AbstractContextManager[None]:
    """Return a context manager that connects to Ray and checks the capacity, before any work is done."""
    return contextlib.nullcontext() if cluster.in_process else ray_session(cluster)


def describe(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Return the cluster's settings and, inside a `session`, the machines that it has now."""
    cores = [float(num_cpus())] if cluster.in_process else node_cpus()
    machine = {
        "host": platform.node(),
        "processor": processor(),
        "nodes": len(cores),
        "cores": sum(cores),
        "driver_memory_bytes": memory_bytes(),
    }
    return {"cluster": asdict(cluster), "machine": machine}


@contextlib.contextmanager
def open_runtime(parts: Components, cluster: Cluster, *, with_learner: bool = True) -> Iterator[Runtime]:
    """Start a runtime inside a `session` and stop its processes at the end; see `RayRuntime` for the arguments."""
    runtime: Runtime
    if cluster.in_process:
        runtime = SerialRuntime(
            parts,
            max_environments=cluster.max_environments,
            max_tasks=cluster.max_tasks,
            env_processes=cluster.env_processes,
            with_learner=with_learner,
        )
    else:
        runtime = RayRuntime(parts, cluster, with_learner=with_learner)
    try:
        yield runtime
    finally:
        runtime.close()
