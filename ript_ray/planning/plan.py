"""A plan: what the processes of a run hold, what they send, and how long an update takes."""

import logging
from dataclasses import asdict, dataclass
from typing import Any

from ript_ray.checks import require
from ript_ray.config.experiment import Experiment
from ript_ray.planning.estimate import Update, estimate
from ript_ray.planning.footprint import footprint_of
from ript_ray.planning.nodes import Nodes
from ript_ray.planning.processes import Process, processes_of
from ript_ray.planning.timing import EnvironmentCost, PolicyCost, measure_environment, measure_policy
from ript_ray.planning.workload import Workload
from ript_ray.rl.process_usage import process_usage
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.factory import require_fit
from ript_ray.runtime.host import memory_bytes
from ript_ray.types import RIPT

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a run of an experiment takes on a cluster.

    Attributes:
        work: The experiment and its policy.
        num_actors: Rollout actors.
        processes: What each holds.
        environment: Cost of an environment, if it was measured.
        policy: Cost of the policy, if it was measured.
        update: A fast and a slow update, if both were.
    """

    work: Workload
    num_actors: int
    processes: tuple[Process, ...]
    environment: EnvironmentCost | None
    policy: PolicyCost | None
    update: tuple[Update, Update] | None

    def to_json(self) -> dict[str, Any]:
        """Return all figures."""
        content = asdict(self)
        del content["work"]
        work = self.work
        sizes = {name: getattr(work, name) for name in ("decisions_per_rollout", "group_bytes", "decisions_per_pass")}
        return {"footprint": asdict(work.footprint), "sizes": sizes, **content}


def make_plan(experiment: Experiment, cluster: Cluster, nodes: Nodes, *, acceptance: float, is_measured: bool) -> Plan:
    """Plan the post-training of an experiment; whether it fits is not checked.

    Args:
        experiment: What is learned.
        cluster: Where it runs.
        nodes: Its machines.
        acceptance: Share of groups that are mixed.
        is_measured: Measure environments and, if it fits into this machine's memory, the policy.

    Raises:
        RiptError: What the policy is built from is missing or does not fit, or a setting is impossible.
    """
    require(RIPT in experiment.stages, f"{experiment.name} does not post-train: there is nothing to plan")
    require(0 < acceptance <= 1, f"acceptance must be above 0 and at most 1, not {acceptance}")
    require_fit(cluster, experiment.num_learners, experiment.policy)
    num_actors = nodes.num_actors(cluster, experiment.num_learners)
    own_bytes = process_usage().rss_bytes
    environment = policy = update = None
    sampling = experiment.sampling
    rows = sampling.rollouts_per_request or sampling.group_size
    if is_measured:
        logger.info("measuring environments of %s", experiment.tasks[0])
        environment, context, observation = measure_environment(experiment)
    work = Workload(
        experiment, footprint_of(experiment.policy, experiment.benchmark.spec, experiment.instructions, rows)
    )
    processes = processes_of(work, cluster, num_actors, own_bytes=own_bytes, environments=environment)
    if environment and 2 * work.footprint.weights_bytes < memory_bytes():
        logger.info("measuring the policy")
        parts = SavedPolicy.initial(experiment).with_instructions().components()
        policy = measure_policy(work, parts, cluster, context, observation)
        update = estimate(
            work,
            cluster,
            num_actors=num_actors,
            num_cpus=nodes.all_cpus,
            acceptance=acceptance,
            costs=(environment, policy),
        )
    elif environment:
        logger.warning("the policy is not measured: this machine's memory is too small for it")
    return Plan(work, num_actors, tuple(processes), environment, policy, update)
