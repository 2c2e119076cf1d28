"""Whether processes fit into the nodes of a cluster, and what to change where they do not."""

import math
from collections.abc import Sequence
from typing import Any

from ript_ray.checks import require
from ript_ray.planning.nodes import GIB, Nodes
from ript_ray.planning.processes import ACTOR, LEARNER, Process
from ript_ray.planning.workload import Workload


def require_fit(processes: Sequence[Process], nodes: Nodes, work: Workload) -> None:
    """Check that each process fits into its share of a GPU, and those of a node into its main memory.

    Raises:
        ConfigError: One does not; the message says what it needs, what there is, and what to change.
    """
    for process in processes:
        if process.gpu_share and nodes.gpu_bytes is not None:
            _require_gpu(process, nodes.gpu_bytes, work)
    need, there = node_bytes(processes, nodes), nodes.memory_bytes
    require(
        need <= there,
        f"the processes of a node need {need / GIB:.1f} GiB of main memory, and it has {there / GIB:.1f}; lower "
        "cluster.num-actors, cluster.max-environments, cluster.max-tasks or cluster.run-ahead, take more nodes "
        "(--num-nodes), or nodes with more memory (--memory-gib)",
    )


def node_bytes(processes: Sequence[Process], nodes: Nodes) -> int:
    """Return what a node holds in main memory: the driver's, where the learners and the object store are, too."""
    return sum(
        process.main_bytes * (math.ceil(process.count / nodes.num_nodes) if process.name == ACTOR else process.count)
        for process in processes
    )


def _require_gpu(process: Process, gpu_bytes: int, work: Workload) -> None:
    share = process.gpu_share
    need, limit = process.gpu_bytes, round(share * gpu_bytes)
    option = {ACTOR: "cluster.gpus-per-actor", LEARNER: "cluster.learner-gpus"}.get(process.name, "cluster.in-process")
    require(
        need <= limit,
        f"{option}: a {process.name} needs {need / GIB:.1f} GiB of GPU memory, and its share, {share:g} of a GPU of "
        f"{gpu_bytes / GIB:.1f} GiB, has {limit / GIB:.1f}; {', or '.join(_changes(process, gpu_bytes, work, option))}",
    )


def _changes(process: Process, gpu_bytes: int, work: Workload, option: str) -> list[str]:
    """Return what would help, best first."""
    changes = []
    limit = process.gpu_share * gpu_bytes
    enough = math.ceil(100 * process.gpu_bytes / gpu_bytes) / 100
    if process.gpu_share < enough <= 1:
        changes.append(f"set {option} to at least {enough:g}")
    footprint = work.footprint
    if process.name != ACTOR:
        passed = footprint.pass_bytes(work.decisions_per_pass)
        room = limit - (process.gpu_bytes - passed)
        fitting = [number for number in _powers(work.decisions_per_pass) if footprint.pass_bytes(number) <= room]
        if fitting:
            changes.append(f"set ppo.micro-batch-decisions to {max(fitting)}")
    if process.name == ACTOR and work.rollouts_per_request > 1 and process.gpu_bytes - footprint.acting_bytes < limit:
        changes.append("lower sampling.rollouts-per-request, so that a query is for fewer rollouts")
    policy: Any = work.experiment.policy
    if getattr(policy, "precision", None) == "float32":
        changes.append("set policy.precision to bfloat16")
    changes.append(f"take GPUs of at least {math.ceil(process.gpu_bytes / min(1, process.gpu_share) / GIB)} GiB")
    return changes


def _powers(below: int) -> list[int]:
    return [2**exponent for exponent in range(below.bit_length()) if 2**exponent < below]
