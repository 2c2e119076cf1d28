"""Where an experiment runs: number of actors, resources, timeouts. At lag 0 none of it changes a result."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields

from ript_ray.checks import require, require_at_least, require_positive

USED_IN_PROCESS = (
    *("in_process", "gpus_per_actor", "learner_gpus", "max_environments", "max_tasks", "env_processes"),
    *("checkpoint_minutes", "keep_groups"),
)
"""Settings that matter without Ray, too."""

SMALLEST_CPU = 1e-4
"""The unit in which Ray allocates cores and GPUs."""


@dataclass(frozen=True)
class Node:
    """What a machine of a cluster offers to Ray.

    Attributes:
        cpus: Cores.
        gpus: GPUs.
        id: Ray's id of it, empty for a machine that need not be there.
        address: Its address, likewise.
    """

    cpus: float
    gpus: int = 0
    id: str = ""
    address: str = ""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster or this machine.

    Attributes:
        num_actors: Rollout actors, at least 1; by default as many as the machine or cluster has capacity for at any
            time: their number follows the nodes that join and leave. A number is also the most there will be: if a
            joined cluster has too few nodes, the run starts with fewer actors and adds the others when nodes join.
        cpus_per_actor: Cores that Ray reserves per rollout actor, at least 0.0001.
        learner_cpus: Cores that Ray reserves per learner, 0 or at least 0.0001. At lag 0 the learner works while the
            actors wait for new weights, so the default is none; with max-policy-lag above 0 reserve some.
        gpus_per_actor: Share of a GPU that Ray reserves per rollout actor, 0 (the policy acts on the CPU) or from
            0.0001 to 1: with 0.25, four actors share a GPU, if its memory holds four copies of the policy.
        learner_gpus: Share of a GPU that Ray reserves per learner, 0 (it learns on the CPU) or from 0.0001 to 1;
            several learners need a whole GPU each. Where the shares of learner and actors add up to at most 1, they
            use the same GPU.
        shard_base: Each of several learners keeps a part of the policy's frozen weights, and fetches the others' layer
            by layer, instead of a whole copy: less memory per learner, more traffic between them, the same bits. For
            large policies of which little is trained, such as openvla-oft.
        max_environments: Environments that a rollout actor keeps open, at least 1; above it, those of the least
            recently used task are closed first. A group that needs more gets them. A MetaWorld environment without
            images takes about 25 MB and half a second to build.
        max_tasks: Tasks whose environments a rollout actor keeps open, at least 1; those of the least recently used
            one are closed first. By default what the benchmark says: 4 for LIBERO, whose scenes take about a gigabyte
            each, any number for MetaWorld.
        env_processes: Processes per rollout actor that its environments step in, side by side, at least 0; 0 for none:
            they step one after another in the actor itself. At most `sampling.rollouts_per_group` are of use. For
            simulators that are slower than the policy, where there are cores; `cpus_per_actor` should count them.
        groups_per_actor: Groups that a rollout actor works on in turns, at least 1: its policy acts for one while
            the environments of another step. Above 1 it needs `env_processes`, and each group has that many of its own;
            `max_environments` and `max_tasks` are shared out. With 2, a policy on a GPU that takes as long as a chunk
            of steps is never idle.
        address: Address of a running Ray cluster; by default the cluster that RAY_ADDRESS names (as inside a
            submitted job), else Ray is started on this machine.
        in_process: Run everything in this process without Ray: same results, slower, easy to debug.
        start_timeout_s: Timeout for starting actors and loading weights, in seconds, above 0.
        group_timeout_s: Shortest timeout for one group of rollouts, in seconds, above 0. It doubles with every failed
            attempt at the group, and is at least three times the longest duration of the latest groups.
        node_timeout_s: Longest time that a run on a joined cluster waits for a node to join, while none has capacity
            for a single rollout actor or for the learner, in seconds, above 0, inf to wait for ever. Then it fails, and
            can be resumed.
        straggler_factor: A group that runs for this multiple of the median duration, and for at least half a second,
            is also run by an idle actor, and the first answer counts; above 1, inf to disable.
        max_replacements: Rollout actors that may be replaced within one hour before the run fails, at least 0.
            Actors that are lost with their node do not count.
        update_timeout_s: Longest time that a learner may go without progress, in seconds, above 0. An update may take
            any time as long as its passes over minibatches (or micro-batches) go on.
        run_ahead: Groups that idle actors roll out before a batch needs them, at least 0; by default as many as the
            actors work on. Those that are not needed before new weights come are cancelled. Their records take memory.
        checkpoint_minutes: A checkpoint is also saved after the first update, or step of a supervised stage, that ends
            this long after the last one, in minutes, above 0, inf to disable. Not part of the experiment: it changes no
            result, and how much work may be lost depends on the machine, also on the one that a run is resumed on.
        keep_groups: Keep groups of rollouts in the run's folder until the next checkpoint, so that a run that is killed
            does not repeat them. Takes as much disk as the records of the updates between two checkpoints (about 3 MB
            per group of 16 rollouts of the published QueST policy).
    """

    num_actors: int | None = None
    cpus_per_actor: float = 1.0
    learner_cpus: float = 0.0
    gpus_per_actor: float = 0.0
    learner_gpus: float = 0.0
    shard_base: bool = False
    max_environments: int = 64
    max_tasks: int | None = None
    env_processes: int = 0
    groups_per_actor: int = 1
    address: str | None = None
    in_process: bool = False
    start_timeout_s: float = 120.0
    group_timeout_s: float = 600.0
    update_timeout_s: float = 600.0
    node_timeout_s: float = 1800.0
    straggler_factor: float = 3.0
    max_replacements: int = 100
    run_ahead: int | None = None
    checkpoint_minutes: float = 30.0
    keep_groups: bool = True

    def __post_init__(self) -> None:
        for each in fields(self) if self.in_process else ():
            has_effect = each.name in USED_IN_PROCESS or getattr(self, each.name) == each.default
            require(has_effect, f"cluster.{each.name.replace('_', '-')} has no effect with cluster.in-process")
        if self.num_actors is not None:
            require_at_least("cluster.num-actors", self.num_actors, 1)
        require_at_least("cluster.cpus-per-actor", self.cpus_per_actor, SMALLEST_CPU)
        if self.learner_cpus != 0:
            require_at_least("cluster.learner-cpus, unless it is 0,", self.learner_cpus, SMALLEST_CPU)
        for name in ("gpus_per_actor", "learner_gpus"):
            share = getattr(self, name)
            is_share = share == 0 or SMALLEST_CPU <= share <= 1
            require(is_share, f"cluster.{name.replace('_', '-')} must be 0, or from {SMALLEST_CPU:g} to 1, not {share}")
        require_at_least("cluster.max-environments", self.max_environments, 1)
        if self.max_tasks is not None:
            require_at_least("cluster.max-tasks", self.max_tasks, 1)
        require_at_least("cluster.env-processes", self.env_processes, 0)
        require_at_least("cluster.groups-per-actor", self.groups_per_actor, 1)
        require(
            self.groups_per_actor == 1 or self.env_processes >= 1,
            f"cluster.groups-per-actor is {self.groups_per_actor}; above 1 it needs cluster.env-processes of at least "
            "1, in which one group steps while the actor acts for another",
        )
        require(self.straggler_factor > 1, f"cluster.straggler-factor must be above 1, not {self.straggler_factor}")
        require_at_least("cluster.max-replacements", self.max_replacements, 0)
        if self.run_ahead is not None:
            require_at_least("cluster.run-ahead", self.run_ahead, 0)
        for name in ("start_timeout_s", "group_timeout_s", "update_timeout_s", "node_timeout_s", "checkpoint_minutes"):
            require_positive(f"cluster.{name.replace('_', '-')}", getattr(self, name))

    @property
    def joined_address(self) -> str | None:
        """Address of the running cluster to join: `address`, else RAY_ADDRESS, else none."""
        return self.address or os.environ.get("RAY_ADDRESS") or None

    @property
    def learner_reserves(self) -> bool:
        """Whether Ray reserves anything for a learner, so that not every node has room for it."""
        return bool(self.learner_cpus or self.learner_gpus)

    @property
    def actor_device(self) -> str:
        """Where the policy acts: Ray shows each process no GPUs but its own."""
        return "cuda" if self.gpus_per_actor else "cpu"

    @property
    def learner_device(self) -> str:
        """Where the learner trains."""
        return "cuda" if self.learner_gpus else "cpu"

    def requested_room(self, num_learners: int) -> list[dict[str, float]]:
        """Return the resources of each learner, if it reserves any, and of each actor that was asked for by number."""
        learner, actor = (
            {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount}
            for cpus, gpus in ((self.learner_cpus, self.learner_gpus), (self.cpus_per_actor, self.gpus_per_actor))
        )
        return [learner] * (num_learners if self.learner_reserves else 0) + [actor] * (self.num_actors or 0)

    def num_fitting(self, nodes: Sequence[Node], num_learners: int = 1, learner_nodes: Sequence[str] = ()) -> int:
        """Return how many actors fit on nodes beside the learners, 0 if these do not fit; ignores other jobs.

        Args:
            nodes: The nodes.
            num_learners: Number of learners.
            learner_nodes: Ids of the nodes they are on. One whose node is not known or gone takes the largest that it
                fits on; if it is gone and there is none, actors take what is there until one joins.
        """
        free = self._beside_learners(nodes, num_learners, learner_nodes)
        return sum(self._num_on(cpus, gpus) for cpus, gpus in free or ())

    def fits_learners(self, nodes: Sequence[Node], num_learners: int) -> bool:
        """Return whether learners fit on nodes; ignores actors and other jobs."""
        return self._beside_learners(nodes, num_learners, ()) is not None

    def contested(self, nodes: Sequence[Node]) -> set[str]:
        """Return the ids of the nodes on which actors may hold what a learner needs."""
        if not self.learner_cpus and not (self.learner_gpus and self.gpus_per_actor):
            return set()
        return {node.id for node in nodes if self.fits_learners([node], 1)}

    def _beside_learners(
        self, nodes: Sequence[Node], num_learners: int, learner_nodes: Sequence[str]
    ) -> list[tuple[float, list[float]]] | None:
        """Return cores and shares of GPUs that learners leave of each node, none if they do not fit."""
        cpus = [node.cpus for node in nodes]
        gpus = [[1.0] * node.gpus for node in nodes]  # one by one: nobody gets shares of two
        index_of = {node.id: index for index, node in enumerate(nodes)}
        for rank in range(num_learners if self.learner_reserves else 0):
            home = learner_nodes[rank] if rank < len(learner_nodes) else None
            fitting = [
                index
                for index in ([index_of[home]] if home in index_of else range(len(nodes)))
                if _fits(self.learner_cpus, cpus[index]) and _fits(self.learner_gpus, max(gpus[index], default=0.0))
            ]
            if not fitting and home is None:
                return None
            if not fitting:
                continue
            place = max(fitting, key=lambda index: (self.learner_gpus and sum(gpus[index]), cpus[index]))
            cpus[place] -= self.learner_cpus
            if self.learner_gpus:
                gpus[place][gpus[place].index(max(gpus[place]))] -= self.learner_gpus
        return list(zip(cpus, gpus, strict=True))

    def _num_on(self, cpus: float, gpus: Sequence[float]) -> int:
        by_cpus = _num_shares(cpus, self.cpus_per_actor)
        if not self.gpus_per_actor:
            return by_cpus
        return min(by_cpus, sum(_num_shares(gpu, self.gpus_per_actor) for gpu in gpus))

    def count_actors(self, nodes: Sequence[Node], num_learners: int = 1) -> int:
        """Return the number of actors to start on nodes.

        Raises:
            ConfigError: `num_actors` do not fit, or not even one does.
        """
        fits = self.num_fitting(nodes, num_learners)
        wanted = max(1, fits) if self.num_actors is None else self.num_actors
        uses_gpus = bool(self.gpus_per_actor or self.learner_gpus)
        cores = " + ".join(f"{node.cpus:g}" for node in nodes)
        gpus = " + ".join(f"{node.gpus}" for node in nodes)
        require(
            wanted <= fits,
            f"cluster.num-actors: {wanted} rollout actors of {self.cpus_per_actor:g} cores"
            f"{f' and {self.gpus_per_actor:g} GPUs' if uses_gpus else ''} and a learner of {self.learner_cpus:g}"
            f"{f' and {self.learner_gpus:g}' if uses_gpus else ''} do not fit into {cores} cores"
            f"{f' and {gpus} GPUs' if uses_gpus else ''}, which have capacity for {fits}; lower cluster.num-actors"
            f"{', cluster.gpus-per-actor, cluster.learner-gpus' if uses_gpus else ''} or cluster.cpus-per-actor",
        )
        return wanted


def _fits(share: float, whole: float) -> bool:
    return not share or _num_shares(whole, share) > 0


def _num_shares(whole: float, share: float) -> int:
    # Without the tolerance, rounding could make 2 / 0.2 nine actors.
    return max(0, math.floor(whole / share + SMALLEST_CPU))
