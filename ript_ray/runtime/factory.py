"""Open the runtime that a cluster configuration selects."""

import contextlib
from collections.abc import Iterator

from ript_ray.rl.protocols import Components, Runtime
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.ray_runtime import RayRuntime, ray_session
from ript_ray.runtime.serial import SerialRuntime


def session(cluster: Cluster) -> contextlib.AbstractContextManager[None]:
    """Return a context manager that connects to Ray and checks the capacity, before any work is done."""
    return contextlib.nullcontext() if cluster.in_process else ray_session(cluster)


@contextlib.contextmanager
def open_runtime(parts: Components, cluster: Cluster, *, with_learner: bool = True) -> Iterator[Runtime]:
    """Start a runtime inside a `session` and stop its processes at the end; see `RayRuntime` for the arguments."""
    runtime: Runtime
    if cluster.in_process:
        runtime = SerialRuntime(parts, max_environments=cluster.max_environments, with_learner=with_learner)
    else:
        runtime = RayRuntime(parts, cluster, with_learner=with_learner)
    try:
        yield runtime
    finally:
        runtime.close()
