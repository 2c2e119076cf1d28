"""Where an experiment runs: number of actors, resources, timeouts. At lag 0 none of it changes a result."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields

from ript_ray.checks import require, require_at_least, require_positive

USED_IN_PROCESS = ("in_process", "max_environments", "max_tasks", "env_processes", "checkpoint_minutes", "keep_groups")
"""Settings that matter without Ray, too."""

SMALLEST_CPU = 1e-4
"""The unit in which Ray allocates cores."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster or this machine.

    Attributes:
        num_actors: Rollout actors, at least 1; by default as many as the machine or cluster has capacity for at the
            start. If a joined cluster has too few nodes, the run starts with fewer actors and adds the others when
            nodes join.
        cpus_per_actor: Cores that Ray reserves per rollout actor, at least 0.0001.
        learner_cpus: Cores that Ray reserves per learner, 0 or at least 0.0001. At lag 0 the learner works while the
            actors wait for new weights, so the default is none; with max-policy-lag above 0 reserve some.
        max_environments: Environments that a rollout actor keeps open, at least 1; above it, those of the least
            recently used task are closed first. A group that needs more gets them. A MetaWorld environment without
            images takes about 25 MB and half a second to build.
        max_tasks: Tasks whose environments a rollout actor keeps open, at least 1; those of the least recently used
            one are closed first. By default what the benchmark says: 4 for LIBERO, whose scenes take about a gigabyte
            each, any number for MetaWorld.
        env_processes: Processes per rollout actor that its environments step in, side by side, at least 0; 0 for none:
            they step one after another in the actor itself. At most `sampling.rollouts_per_group` are of use. For
            simulators that are slower than the policy, where there are cores; `cpus_per_actor` should count them.
        address: Address of a running Ray cluster; by default the cluster that RAY_ADDRESS names (as inside a
            submitted job), else Ray is started on this machine.
        in_process: Run everything in this process without Ray: same results, slower, easy to debug.
        start_timeout_s: Timeout for starting actors and loading weights, in seconds, above 0.
        group_timeout_s: Shortest timeout for one group of rollouts, in seconds, above 0. It doubles with every failed
            attempt at the group, and is at least three times the longest duration of the latest groups.
        straggler_factor: A group that runs for this multiple of the median duration, and for at least half a second,
            is also run by an idle actor, and the first answer counts; above 1, inf to disable.
        max_replacements: Rollout actors that may be replaced within one hour before the run fails, at least 0.
            Actors that are lost with their node do not count.
        update_timeout_s: Longest time that a learner may go without progress, in seconds, above 0. An update may take
            any time as long as its passes over minibatches (or micro-batches) go on.
        run_ahead: Groups that idle actors roll out before a batch needs them, at least 0; by default as many as there
            are actors. Those that are not needed before new weights come are cancelled. Their records take memory.
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
    max_environments: int = 64
    max_tasks: int | None = None
    env_processes: int = 0
    address: str | None = None
    in_process: bool = False
    start_timeout_s: float = 120.0
    group_timeout_s: float = 600.0
    update_timeout_s: float = 600.0
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
        require_at_least("cluster.max-environments", self.max_environments, 1)
        if self.max_tasks is not None:
            require_at_least("cluster.max-tasks", self.max_tasks, 1)
        require_at_least("cluster.env-processes", self.env_processes, 0)
        require(self.straggler_factor > 1, f"cluster.straggler-factor must be above 1, not {self.straggler_factor}")
        require_at_least("cluster.max-replacements", self.max_replacements, 0)
        if self.run_ahead is not None:
            require_at_least("cluster.run-ahead", self.run_ahead, 0)
        for name in ("start_timeout_s", "group_timeout_s", "update_timeout_s", "checkpoint_minutes"):
            require_positive(f"cluster.{name.replace('_', '-')}", getattr(self, name))

    @property
    def joined_address(self) -> str | None:
        """Address of the running cluster to join: `address`, else RAY_ADDRESS, else none."""
        return self.address or os.environ.get("RAY_ADDRESS") or None

    def num_fitting(self, node_cpus: Sequence[float], num_learners: int = 1) -> int:
        """Return how many actors fit on nodes with `node_cpus` cores beside the learners; ignores other jobs."""
        free = list(node_cpus)
        for _ in range(num_learners if free else 0):
            free[free.index(max(free))] -= self.learner_cpus
        # Without the tolerance, rounding could make 2 / 0.2 nine actors.
        return sum(max(0, math.floor(cpus / self.cpus_per_actor + SMALLEST_CPU)) for cpus in free)

    def count_actors(self, node_cpus: Sequence[float], num_learners: int = 1) -> int:
        """Return the number of actors to start on nodes with `node_cpus` cores.

        Raises:
            ConfigError: `num_actors` do not fit, or not even one does.
        """
        fits = self.num_fitting(node_cpus, num_learners)
        wanted = max(1, fits) if self.num_actors is None else self.num_actors
        cores = " + ".join(f"{cpus:g}" for cpus in node_cpus)
        require(
            wanted <= fits,
            f"cluster.num-actors: {wanted} rollout actors of {self.cpus_per_actor:g} cores and a learner of "
            f"{self.learner_cpus:g} do not fit into {cores} cores, which have capacity for {fits}; "
            "lower cluster.num-actors or cluster.cpus-per-actor",
        )
        return wanted
