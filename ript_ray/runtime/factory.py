"""The runtime that a cluster asks for."""

import contextlib
from collections.abc import Callable, Iterator

from ript_ray.rl.protocols import Components, Runtime
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.ray_runtime import RayRuntime, ray_session
from ript_ray.runtime.serial import SerialRuntime


def session(cluster: Cluster) -> contextlib.AbstractContextManager[None]:
    """Make sure, before any work is done, that the cluster is there and holds the actors asked for."""
    return contextlib.nullcontext() if cluster.in_process else ray_session(cluster)


@contextlib.contextmanager
def open_runtime(
    parts: Components, cluster: Cluster, *, with_learner: bool = True, report: Callable[[str], None] = lambda text: None
) -> Iterator[Runtime]:
    """Start a runtime inside a `session`, and stop its processes at the end; see `RayRuntime` for the arguments."""
    runtime: Runtime
    if cluster.in_process:
        runtime = SerialRuntime(parts)
    else:
        runtime = RayRuntime(parts, cluster, with_learner=with_learner, report=report)
    try:
        yield runtime
    finally:
        runtime.close()
