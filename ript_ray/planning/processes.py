"""What each process of a run holds: on its GPU, if it has one, and in main memory."""

from collections.abc import Sequence
from dataclasses import dataclass

from ript_ray.planning.footprint import Footprint
from ript_ray.planning.timing import EnvironmentCost
from ript_ray.planning.workload import Workload
from ript_ray.runtime.cluster import Cluster

CUDA_BYTES = 600 * 2**20
"""What CUDA takes of a GPU per process, before the first tensor. Source: ours, not measured here."""

ACTOR, LEARNER, DRIVER, STORE, ALL = "rollout actor", "learner", "driver", "object store", "all in one process"


@dataclass(frozen=True)
class Holding:
    """One thing that a process holds."""

    what: str
    num_bytes: int


@dataclass(frozen=True)
class Process:
    """A kind of process.

    Attributes:
        name: The kind.
        count: How many there are in the cluster.
        gpu_share: Share of a GPU that each has; 0 for none.
        gpu: What each holds there.
        main: What each holds in main memory, at its highest.
    """

    name: str
    count: int
    gpu_share: float
    gpu: tuple[Holding, ...]
    main: tuple[Holding, ...]

    @property
    def gpu_bytes(self) -> int:
        """All that is on its GPU."""
        return sum(holding.num_bytes for holding in self.gpu)

    @property
    def main_bytes(self) -> int:
        """All that is in main memory."""
        return sum(holding.num_bytes for holding in self.main)


def processes_of(
    work: Workload, cluster: Cluster, num_actors: int, *, own_bytes: int, environments: EnvironmentCost | None
) -> list[Process]:
    """Return all processes of a run.

    Args:
        work: The experiment and its policy.
        cluster: Where it runs.
        num_actors: Rollout actors.
        own_bytes: What a process takes for Python, torch and Ray.
        environments: What environments take, if that was measured.
    """
    own = Holding("Python, torch, Ray", own_bytes)
    actor, learner = _actor(work, cluster, own, environments), _learner(work, cluster, own)
    if cluster.in_process:
        main = (*actor.main, *(holding for holding in learner.main if holding != own))
        both = actor.gpu_share and learner.gpu_share
        gpu = (*actor.gpu, *(learner.gpu[1:] if both else learner.gpu))
        return [Process(ALL, 1, max(actor.gpu_share, learner.gpu_share), gpu, main)]
    trained = work.footprint.trained_bytes
    ahead = num_actors if cluster.run_ahead is None else cluster.run_ahead
    sampling = work.experiment.sampling
    num_groups = (sampling.max_policy_lag + 1) * sampling.groups_per_update + ahead
    store = (
        Holding(f"{num_groups} groups on their way to the learner", num_groups * work.group_bytes),
        Holding("weights, and moments before the update", 4 * trained),
    )
    return [
        _times(actor, num_actors),
        _times(learner, work.experiment.num_learners),
        Process(DRIVER, 1, 0, (), (own, Holding("trained weights", trained))),
        Process(STORE, 1, 0, (), store),
    ]


def _times(process: Process, count: int) -> Process:
    return Process(process.name, count, process.gpu_share, process.gpu, process.main)


def _actor(work: Workload, cluster: Cluster, own: Holding, environments: EnvironmentCost | None) -> Process:
    footprint, rows = work.footprint, work.rollouts_per_request
    acting = rows * cluster.groups_per_actor
    query = Holding(f"a query for {rows} rollouts", footprint.acting_bytes)
    main = (
        Holding("weights as they arrive", footprint.trained_bytes),
        Holding(f"records of {acting} rollouts", acting * work.rollout_bytes),
        *_environments(work, cluster, environments),
    )
    return _placed(ACTOR, cluster.gpus_per_actor, (*_weights(footprint), query), (own, *main), footprint)


def _learner(work: Workload, cluster: Cluster, own: Holding) -> Process:
    footprint, trained = work.footprint, work.footprint.trained_bytes
    num_shares = work.experiment.num_learners if cluster.shard_base else 1
    num_passes = 1 if cluster.learner_gpus or cluster.shard_base else work.experiment.ppo.parallel_passes
    held = (
        *_weights(footprint, num_shares),
        Holding("gradients", trained * (1 + num_passes if num_passes > 1 else 1)),
        Holding("AdamW's two moments", 2 * trained),
        Holding("copy for a rollback: weights, moments", 3 * trained),
        Holding("a minibatch", work.minibatch_rollouts * work.rollout_bytes),
        Holding(f"a pass, decisions: {work.decisions_per_pass}", footprint.pass_bytes(work.decisions_per_pass)),
    )
    batch = Holding("the batch", work.experiment.sampling.batch_rollouts * work.rollout_bytes)
    main = [own, batch]
    if work.encoding_bytes:
        main.append(Holding("encodings of the batch", work.encoding_bytes))
    return _placed(LEARNER, cluster.learner_gpus, held, main, footprint)


def _weights(footprint: Footprint, num_shares: int = 1) -> tuple[Holding, ...]:
    """Every process has a copy of its own, unless learners share what is not trained."""
    trained = [Holding(f"trained weights {group}".rstrip(), size) for group, size in footprint.trained.items()]
    frozen = (footprint.weights_bytes - footprint.trained_bytes) // num_shares
    return (Holding("weights that are not trained", frozen), *trained)


def _placed(name: str, share: float, held: Sequence[Holding], main: Sequence[Holding], footprint: Footprint) -> Process:
    """Put what is computed with on the GPU, if there is a share of one; the policy is built in main memory."""
    if not share:
        return Process(name, 1, share, (), (*main, *held))
    built = Holding("weights, until they are on the GPU", footprint.weights_bytes)
    return Process(name, 1, share, (Holding("CUDA", CUDA_BYTES), *held), (*main, built))


def _environments(work: Workload, cluster: Cluster, cost: EnvironmentCost | None) -> list[Holding]:
    """Return what an actor's environments take when it has met all tasks that it keeps open."""
    if cost is None:
        return []
    experiment, rows = work.experiment, work.rollouts_per_request
    max_tasks = cluster.max_tasks or experiment.benchmark.spec.max_tasks or len(experiment.tasks)
    wanted = rows * min(max_tasks, len(experiment.tasks))
    groups = cluster.groups_per_actor  # each has environments and processes of its own
    number = max(groups * rows, min(groups * wanted, cluster.max_environments))
    hosts = groups * max(1, min(cluster.env_processes, rows))
    size = hosts * cost.first_bytes + (number - hosts) * cost.more_bytes
    where = f" in {hosts} processes" if cluster.env_processes else ""
    return [Holding(f"{number} environments{where}", max(0, size))]
