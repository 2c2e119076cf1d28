"""The nodes of a Ray cluster: which are there, which are about to leave, and what the log says of it."""

import logging
import time
from collections.abc import Callable, Sequence

import ray
from ray._private import state as ray_state

from ript_ray.errors import WorkerError
from ript_ray.runtime.autoscaler import RoomRequest
from ript_ray.runtime.capacity import CHECK_S, Room
from ript_ray.runtime.cluster import Cluster, Node
from ript_ray.runtime.heartbeat import HEARTBEAT_S
from ript_ray.runtime.placement import reserved_group, within_reserved

logger = logging.getLogger(__name__)


def live_nodes() -> list[Node]:
    """Return the live nodes, without those that are about to leave."""
    draining = _draining_nodes()
    return [node for node in _all_live_nodes() if node.id not in draining]


def await_room_for_learners(cluster: Cluster, num_learners: int, request: RoomRequest) -> None:
    """Wait until there are nodes that the learners fit on, and repeat the request for them.

    Raises:
        WorkerError: None joined within `cluster.node_timeout_s`, or none can join Ray on this machine.
    """
    started, timeout_s = time.monotonic(), cluster.node_timeout_s if cluster.joined_address else 0.0
    needs = f"no live node has room for a learner of {cluster.learner_cpus:g} cores and {cluster.learner_gpus:g} GPUs"
    limit = f"{timeout_s:g} s (cluster.node-timeout-s, for a cluster that is joined)"
    next_sign_s = 0.0
    while not cluster.fits_learners(live_nodes(), num_learners):
        waited_s = time.monotonic() - started
        if waited_s > timeout_s:
            raise WorkerError(f"{needs}; none joined within {limit}")
        if waited_s >= next_sign_s:
            logger.warning("%s: waiting for a node to join, for %.0f s so far, at most %s", needs, waited_s, limit)
            next_sign_s = waited_s + HEARTBEAT_S
        request.send()
        time.sleep(CHECK_S)


class NodeWatch:
    """Counts the rollout actors that fit on the nodes; logs which nodes join, are about to leave, and are gone."""

    def __init__(
        self, cluster: Cluster, num_learners: int, learner_nodes: Callable[[], Sequence[str]], request: RoomRequest
    ):
        """Begin with no node known.

        Args:
            cluster: What actors and learners take.
            num_learners: Number of learners.
            learner_nodes: Returns the ids of the nodes that the learners are on, as far as that is known.
            request: Repeated while there is too little room for actors or learners.
        """
        self._cluster = cluster
        self._num_learners = num_learners
        self._learner_nodes = learner_nodes
        self._request = request
        self._known: dict[str, Node] = {}
        self._leaving: set[str] = set()

    def look(self) -> Room:
        """Return the room for actors now."""
        nodes = {node.id: node for node in _all_live_nodes()}
        leaving = {number: moment for number, moment in _draining_nodes().items() if number in nodes}
        self._log_changes(nodes, leaving)
        staying = [node for node in nodes.values() if node.id not in leaving]
        num_actors = self._cluster.num_fitting(staying, self._num_learners, self._learner_nodes())
        if num_actors < (self._cluster.num_actors or 0) or not self._cluster.fits_learners(staying, self._num_learners):
            self._request.send()
        return Room(num_actors, frozenset(leaving))

    def _log_changes(self, nodes: dict[str, Node], leaving: dict[str, float]) -> None:
        for number in nodes.keys() - self._known.keys() if self._known else ():
            node = nodes[number]
            logger.info("node %s has joined: cores %g, GPUs %d", _name(node), node.cpus, node.gpus)
        for number in leaving.keys() - self._leaving:
            in_time = f" in {leaving[number] - time.time():.0f} s" if leaving[number] else ""
            text = "node %s is about to leave%s: its rollout actors finish their groups and get no others"
            logger.warning(text, _name(nodes[number]), in_time)
        for number in self._known.keys() - nodes.keys():
            what = "has left, as announced" if number in self._leaving else "is gone"
            logger.warning("node %s %s", _name(self._known[number]), what)
        self._known, self._leaving = nodes, set(leaving)


def _all_live_nodes() -> list[Node]:
    nodes = [
        Node(
            float(each["Resources"].get("CPU", 0.0)),
            int(each["Resources"].get("GPU", 0.0)),
            id=each["NodeID"],
            address=each["NodeManagerAddress"],
        )
        for each in ray.nodes()
        if each["Alive"]
    ]
    return within_reserved(nodes)


def _draining_nodes() -> dict[str, float]:
    """Return when the nodes leave that Ray was told to drain, in seconds since 1970; 0 where that was not said.

    A cloud's notice does so by way of Ray's autoscaler, and anybody by `ray drain-node`. Ray keeps such a node's actors
    and starts no others there. Nothing public tells which nodes these are; Ray Serve asks as we do. What is reserved
    for the trial of a sweep stays on its node to the end, so a trial has nowhere else to go before.
    """
    if reserved_group():
        return {}
    return {number: moment_ms / 1000 for number, moment_ms in ray_state.state.get_draining_nodes().items()}


def _name(node: Node) -> str:
    return f"{node.address} ({node.id[:8]})"  # several may be on one machine
