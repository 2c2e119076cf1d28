"""Open the runtime that a cluster configuration selects."""

import contextlib
import platform
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from ript_ray.checks import require
from ript_ray.policies.base import PolicyConfig
from ript_ray.rl.hosting import Hosting
from ript_ray.rl.protocols import Components, Runtime
from ript_ray.runtime.cluster import Cluster, Node
from ript_ray.runtime.host import memory_bytes, num_cpus, processor
from ript_ray.runtime.nodes import live_nodes
from ript_ray.runtime.ray_runtime import RayRuntime
from ript_ray.runtime.ray_session import ray_session
from ript_ray.runtime.serial import SerialRuntime


def require_fit(cluster: Cluster, num_learners: int, policy: PolicyConfig) -> None:
    """Check, before anything is started, that a cluster can run that many learners of a policy.

    Raises:
        ConfigError: It cannot.
    """
    if cluster.in_process:
        SerialRuntime.require_fit(num_learners)
    require(
        num_learners > 1 or not cluster.shard_base,
        "cluster.shard-base shares frozen weights between learners, but num-learners is 1; leave it off, or take more",
    )
    require(
        policy.is_shardable or not cluster.shard_base,
        f"cluster.shard-base: policy {policy.kind} has no frozen weights that learners could share; leave it off, or "
        "give the policy `shard_units` and its configuration `is_shardable`",
    )
    require(
        num_learners == 1 or cluster.learner_gpus in (0, 1),
        f"cluster.learner-gpus is {cluster.learner_gpus:g}; with num-learners {num_learners} it must be 0 or 1, for "
        "learners that exchange gradients need a whole GPU each",
    )


def session(cluster: Cluster) -> contextlib.AbstractContextManager[None]:
    """Return a context manager that connects to Ray and checks the capacity, before any work is done."""
    return contextlib.nullcontext() if cluster.in_process else ray_session(cluster)


def describe(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Return the cluster's settings and, inside a `session`, the machines that it has now."""
    nodes = [Node(num_cpus())] if cluster.in_process else live_nodes()
    machine = {
        "host": platform.node(),
        "processor": processor(),
        "nodes": len(nodes),
        "cores": sum(node.cpus for node in nodes),
        "gpus": sum(node.gpus for node in nodes),
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
            Hosting(cluster.max_environments, cluster.max_tasks or parts.max_tasks, cluster.env_processes),
            actor_device=cluster.actor_device,
            learner_device=cluster.learner_device,
            with_learner=with_learner,
        )
    else:
        runtime = RayRuntime(parts, cluster, with_learner=with_learner)
    try:
        yield runtime
    finally:
        runtime.close()
