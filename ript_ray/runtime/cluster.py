"""Where an experiment runs: how many actors, and what each may use. At lag 0 nothing here changes a result."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from ript_ray.checks import require, require_at_least, require_positive


@dataclass(frozen=True)
class Cluster:
    """A cluster, or this machine.

    Attributes:
        num_actors: Rollout actors, at least 1; none fills the machine or cluster as it is at the start. Where a
            cluster that is joined has too few nodes, the run begins with fewer and waits for more.
        cpus_per_actor: Cores that Ray reserves for a rollout actor, above 0.
        learner_cpus: Cores that Ray reserves for each learner, at least 0. At lag 0 the learner works while the
            actors wait for new weights, so by default it reserves none; with max-policy-lag it wants its own.
        address: Address of a running Ray cluster; none starts Ray on this machine, or joins the cluster
            that RAY_ADDRESS names (as inside a submitted job).
        in_process: Run everything in this process, without Ray: the same results, slower, easy to debug.
        start_timeout_s: Longest wait for the actors to start, in seconds, above 0.
        group_timeout_s: Longest wait for one group of rollouts, in seconds, above 0.
        straggler_factor: A group that runs for this many times the median, and for half a second at least, is run
            by an idle actor too, and the first answer counts; above 1, inf for never.
        max_replacements: Rollout actors replaced in one run before it ends, at least 0.
        update_timeout_s: Longest wait for one update of the learner, in seconds, above 0.
    """

    num_actors: int | None = None
    cpus_per_actor: float = 1.0
    learner_cpus: float = 0.0
    address: str | None = None
    in_process: bool = False
    start_timeout_s: float = 120.0
    group_timeout_s: float = 600.0
    update_timeout_s: float = 3600.0
    straggler_factor: float = 3.0
    max_replacements: int = 100

    def __post_init__(self) -> None:
        if self.num_actors is not None:
            require_at_least("cluster.num-actors", self.num_actors, 1)
        require_positive("cluster.cpus-per-actor", self.cpus_per_actor)
        require_at_least("cluster.learner-cpus", self.learner_cpus, 0.0)
        require(self.straggler_factor > 1, f"cluster.straggler-factor must be above 1, not {self.straggler_factor}")
        require_at_least("cluster.max-replacements", self.max_replacements, 0)
        for name in ("start_timeout_s", "group_timeout_s", "update_timeout_s"):
            require_positive(f"cluster.{name.replace('_', '-')}", getattr(self, name))

    @property
    def joined_address(self) -> str | None:
        """Address of the running cluster to join: the one given, else the one the environment names."""
        return self.address or os.environ.get("RAY_ADDRESS") or None

    def num_fitting(self, node_cpus: Sequence[float], num_learners: int = 1) -> int:
        """Actors that nodes with so many cores hold, beside the learners; other jobs are not reckoned with."""
        free = list(node_cpus)
        for _ in range(num_learners if free else 0):
            free[free.index(max(free))] -= self.learner_cpus
        # Cores are handed out in ten-thousandths: 2 / 0.2 is ten actors, whatever floats make of it.
        return sum(max(0, math.floor(cpus / self.cpus_per_actor + 1e-4)) for cpus in free)

    def count_actors(self, node_cpus: Sequence[float], num_learners: int = 1) -> int:
        """Actors to start on nodes with so many cores.

        Raises:
            ConfigError: They do not hold `num_actors`, or not even one.
        """
        fits = self.num_fitting(node_cpus, num_learners)
        wanted = max(1, fits) if self.num_actors is None else self.num_actors
        cores = " + ".join(f"{cpus:g}" for cpus in node_cpus)
        require(
            wanted <= fits,
            f"cluster.num-actors: {wanted} rollout actors of {self.cpus_per_actor:g} cores and a learner of "
            f"{self.learner_cpus:g} do not fit into {cores} cores, which hold {fits}; "
            "lower cluster.num-actors or cluster.cpus-per-actor",
        )
        return wanted
