"""Where an experiment runs: how many actors, and what each may use. Nothing here changes what is learned."""

import os
from dataclasses import dataclass

from ript_ray.checks import require, require_at_least, require_positive


@dataclass(frozen=True)
class Cluster:
    """A cluster, or this machine.

    Attributes:
        num_actors: Rollout actors, at least 1; none fills the machine or cluster.
        cpus_per_actor: Cores that Ray reserves for a rollout actor, above 0.
        gpus_per_actor: GPUs that Ray reserves for a rollout actor, at least 0.
        learner_cpus: Cores that Ray reserves for the learner, at least 0. The learner works while the
            actors wait for new weights, so by default it reserves none.
        learner_gpus: GPUs that Ray reserves for the learner, at least 0.
        address: Address of a running Ray cluster; none starts Ray on this machine, or joins the cluster
            that the environment names (as it does inside a submitted job).
        start_timeout_s: Longest wait for the actors to start, in seconds, above 0.
        group_timeout_s: Longest wait for one request, in seconds, above 0.
    """

    num_actors: int | None = None
    cpus_per_actor: float = 1.0
    gpus_per_actor: float = 0.0
    learner_cpus: float = 0.0
    learner_gpus: float = 0.0
    address: str | None = None
    start_timeout_s: float = 120.0
    group_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if self.num_actors is not None:
            require_at_least("cluster.num-actors", self.num_actors, 1)
        require_positive("cluster.cpus-per-actor", self.cpus_per_actor)
        for name in ("gpus_per_actor", "learner_cpus", "learner_gpus"):
            require_at_least(f"cluster.{name.replace('_', '-')}", getattr(self, name), 0.0)
        require_positive("cluster.start-timeout-s", self.start_timeout_s)
        require_positive("cluster.group-timeout-s", self.group_timeout_s)

    @property
    def is_here(self) -> bool:
        """Whether Ray is to be started on this machine."""
        return self.joined_address is None

    @property
    def joined_address(self) -> str | None:
        """Address of the running cluster to join: the one given, else the one the environment names."""
        return self.address or os.environ.get("RAY_ADDRESS") or None

    def count_actors(self, cpus: float, gpus: float) -> int:
        """Actors to start on a machine or cluster with this many cores and GPUs.

        Raises:
            ConfigError: It does not hold `num_actors`, or not even one.
        """
        fits = int((cpus - self.learner_cpus) // self.cpus_per_actor)
        if self.gpus_per_actor:
            fits = min(fits, int((gpus - self.learner_gpus) // self.gpus_per_actor))
        wanted = max(1, fits) if self.num_actors is None else self.num_actors
        require(
            wanted <= fits,
            f"cluster.num-actors: {wanted} rollout actors of {self.cpus_per_actor:g} cores and "
            f"{self.gpus_per_actor:g} GPUs each, plus a learner of {self.learner_cpus:g} cores and "
            f"{self.learner_gpus:g} GPUs, do not fit into {cpus:g} cores and {gpus:g} GPUs, "
            f"which hold {max(0, fits)}; lower cluster.num-actors or cluster.cpus-per-actor",
        )
        return wanted
