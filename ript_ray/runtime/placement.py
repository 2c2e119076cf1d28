"""The cores that a run inside another Ray job has to itself: those that were reserved for the trial of a sweep."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ript_ray.runtime.cluster import Node

RESERVED = "RIPT_RAY_PLACEMENT_GROUP"
"""Environment variable with the id of the placement group that all actors of this process belong to."""

ANY_BUNDLE = -1


def reserved_group() -> PlacementGroup | None:
    """Return what is reserved for this process; none where it has the whole cluster, as it has outside of sweeps."""
    reserved = os.environ.get(RESERVED)
    return PlacementGroup(ray.PlacementGroupID(bytes.fromhex(reserved))) if reserved else None


def placed(otherwise: Any, bundle: int = ANY_BUNDLE) -> Any:
    """Return the scheduling strategy of an actor: among what is reserved for this process, `otherwise` as given.

    Args:
        otherwise: Its strategy where nothing is reserved.
        bundle: The part of what is reserved that it has to take, by number.
    """
    group = reserved_group()
    if group is None:
        return otherwise
    return PlacementGroupSchedulingStrategy(group, bundle, placement_group_capture_child_tasks=True)


def actor_bundle(slot: int, num_actors: int | None) -> int:
    """Return the part of what is reserved for this process that the rollout actor in a slot has to take.

    The last ones are the actors', so that none of them takes that of a learner which is being replaced. An actor that
    replaces one which is about to leave takes any.
    """
    group = reserved_group()
    if group is None or num_actors is None or slot >= num_actors:
        return ANY_BUNDLE
    return group.bundle_count - num_actors + slot


def within_reserved(nodes: Sequence[Node]) -> list[Node]:
    """Return what this process may use of nodes: all of them, or what is reserved for it there.

    What was reserved on a node that is lost is nowhere until Ray has found another node for it.
    """
    group = reserved_group()
    if group is None:
        return list(nodes)
    table = placement_group_table(group)
    bundles: dict[str, list[dict[str, float]]] = {node.id: [] for node in nodes}
    for number, node_id in table.get("bundles_to_node_id", {}).items():
        bundles.get(node_id, []).append(table["bundles"][number])
    return [
        replace(
            node,
            cpus=sum(bundle.get("CPU", 0.0) for bundle in own),
            gpus=min(node.gpus, sum("GPU" in bundle for bundle in own)),  # at most: some may share one
        )
        for node in nodes
        if (own := bundles[node.id])
    ]
