"""Where an experiment runs: how many actors, and what each may use. Nothing here changes what is learned."""

import math
import os
from dataclasses import dataclass

from ript_ray.checks import require, require_at_least, require_positive


@dataclass(frozen=True)
class Cluster:
    """A cluster, or this machine.

    Attributes:
        num_actors: Rollout actors, at least 1; none fills the machine or cluster.
        cpus_per_actor: Cores that Ray reserves for a rollout actor, above 0.
        learner_cpus: Cores that Ray reserves for the learner, at least 0. The learner works while the
            actors wait for new weights, so by default it reserves none.
        address: Address of a running Ray cluster; none starts Ray on this machine, or joins the cluster
            that RAY_ADDRESS names (as inside a submitted job).
        in_process: Run everything in this process, without Ray: the same results, slower, easy to debug.
        start_timeout_s: Longest wait for the actors to start, in seconds, above 0.
        group_timeout_s: Longest wait for one group of rollouts, in seconds, above 0.
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
    max_replacements: int = 100

    def __post_init__(self) -> None:
        if self.num_actors is not None:
            require_at_least("cluster.num-actors", self.num_actors, 1)
        require_positive("cluster.cpus-per-actor", self.cpus_per_actor)
        require_at_least("cluster.learner-cpus", self.learner_cpus, 0.0)
        require_at_least("cluster.max-replacements", self.max_replacements, 0)
        for name in ("start_timeout_s", "group_timeout_s", "update_timeout_s"):
            require_positive(f"cluster.{name.replace('_', '-')}", getattr(self, name))

    @property
    def joined_address(self) -> str | None:
        """Address of the running cluster to join: the one given, else the one the environment names."""
        return self.address or os.environ.get("RAY_ADDRESS") or None

    def count_actors(self, cpus: float) -> int:
        """Actors to start where Ray has this many cores.

        Raises:
            ConfigError: They do not hold `num_actors`, or not even one.
        """
        # Cores are handed out in ten-thousandths: 2 / 0.2 is ten actors, whatever floats make of it.
        fits = math.floor((cpus - self.learner_cpus) / self.cpus_per_actor + 1e-4)
        wanted = max(1, fits) if self.num_actors is None else self.num_actors
        require(
            wanted <= fits,
            f"cluster.num-actors: {wanted} rollout actors of {self.cpus_per_actor:g} cores and a learner of "
            f"{self.learner_cpus:g} do not fit into {cpus:g} cores, which hold {max(0, fits)}; "
            "lower cluster.num-actors or cluster.cpus-per-actor",
        )
        return wanted
