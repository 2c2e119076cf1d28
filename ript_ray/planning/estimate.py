"""How long an update takes on a cluster, from times that were measured on one machine."""

import math
from dataclasses import dataclass

from ript_ray.planning.timing import EnvironmentCost, PolicyCost
from ript_ray.planning.workload import Workload
from ript_ray.runtime.cluster import Cluster

SHORTEST = 0.5
"""Mean length of a rollout in the faster case, as a share of the longest; in the slower case all have full length."""


@dataclass(frozen=True)
class Update:
    """One update.

    Attributes:
        rollouts_s: Collecting its rollouts.
        learner_s: Its optimizer steps.
        total_s: Both, one after the other at lag 0 and side by side above it.
    """

    rollouts_s: float
    learner_s: float
    total_s: float


def estimate(
    work: Workload,
    cluster: Cluster,
    *,
    num_actors: int,
    num_cpus: float,
    acceptance: float,
    costs: tuple[EnvironmentCost, PolicyCost],
) -> tuple[Update, Update]:
    """Return a fast and a slow update.

    Args:
        work: The experiment and its policy.
        cluster: Where it runs.
        num_actors: Rollout actors.
        num_cpus: Cores of all nodes: what steps side by side.
        acceptance: Share of groups that are mixed.
        costs: Of environments and policy.
    """
    experiment = work.experiment
    num_requests = experiment.sampling.requests_per_group * experiment.sampling.groups_per_update / acceptance
    num_at_once = max(1.0, min(num_actors, num_cpus))
    cores_each = max(1.0, num_cpus / num_actors)
    updates = []
    for share, rounds in (
        (SHORTEST, num_requests / num_at_once),
        (1.0, math.ceil(num_requests / num_at_once)),  # the last requests leave actors idle
    ):
        num_decisions = share * work.decisions_per_rollout
        rollouts_s = rounds * _request_s(work, cluster, num_decisions, cores_each, costs)
        passes = experiment.ppo.num_iterations * experiment.sampling.batch_rollouts * num_decisions
        learner_s = passes * costs[1].decision_s / experiment.num_learners
        is_overlapped = experiment.sampling.max_policy_lag > 0
        total_s = max(rollouts_s, learner_s) if is_overlapped else rollouts_s + learner_s
        updates.append(Update(rollouts_s, learner_s, total_s))
    fast, slow = updates
    return fast, slow


def _request_s(
    work: Workload,
    cluster: Cluster,
    num_decisions: float,
    cores_each: float,
    costs: tuple[EnvironmentCost, PolicyCost],
) -> float:
    """Return how long an actor takes for the rollouts that act as one batch; in turns, acting and stepping overlap."""
    environment, policy = costs
    rows = work.rollouts_per_request
    side_by_side = max(1.0, min(cluster.env_processes, rows, cores_each))
    acting_s = environment.observe_s + work.footprint.executed * environment.step_s
    stepping_s = rows * (environment.reset_s + num_decisions * acting_s) / side_by_side
    querying_s = num_decisions * policy.query_s
    return max(stepping_s, querying_s) if cluster.groups_per_actor > 1 else stepping_s + querying_s
