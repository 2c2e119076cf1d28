"""The system on Ray: a pool of rollout actors and one learner actor.

The driver sees summaries only. A group goes from its actor to the learner by reference, as soon as it is
accepted; rejected groups never move. Weights go out as one object that all actors of a node share.
"""

from collections.abc import Sequence
from typing import Any

import ray

from ript_ray.errors import WorkerError
from ript_ray.learner import Learner, UpdateReport
from ript_ray.machine import num_cpus
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.contract import Parts
from ript_ray.runtime.pool import RAY_FAILURES, ActorPool
from ript_ray.runtime.worker import RolloutWorker
from ript_ray.types import GroupSummary, RolloutRequest, Weights


def connect(cluster: Cluster) -> tuple[float, float]:
    """Start Ray here, or join the cluster that `cluster` or the environment names.

    Returns:
        Cores and GPUs that Ray knows of.

    Raises:
        WorkerError: There is no Ray cluster at the address.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = cluster.joined_address
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(num_cpus=num_cpus(), include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError) as error:
        raise WorkerError(f"cannot join Ray at {address or 'this machine'}: {error}") from error
    resources = ray.cluster_resources()
    return resources.get("CPU", 0.0), resources.get("GPU", 0.0)


class RayRuntime:
    """See `Runtime`."""

    def __init__(self, parts: Parts, cluster: Cluster):
        """Start the learner and the rollout actors, and wait until all of them answer.

        Raises:
            ConfigError: The cluster does not hold the actors asked for.
            WorkerError: They do not start within `cluster.start_timeout_s`.
        """
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            cpus, gpus = connect(cluster)
        else:
            resources = ray.cluster_resources()
            cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
        num_actors = cluster.count_actors(cpus, gpus)
        self._timeout_s = cluster.group_timeout_s
        self._groups: dict[int, ray.ObjectRef] = {}
        build_policy = ray.put(parts.build_policy)  # stored once, read by every actor of a node
        learner_class = ray.remote(num_cpus=cluster.learner_cpus, num_gpus=cluster.learner_gpus)(Learner)
        self._learner = learner_class.remote(
            build_policy, parts.ppo, seed=parts.seed, num_threads=parts.learner_threads
        )
        worker_class = ray.remote(num_cpus=cluster.cpus_per_actor, num_gpus=cluster.gpus_per_actor)(RolloutWorker)
        actors = [worker_class.remote(build_policy, parts.make_environment, parts.max_steps) for _ in range(num_actors)]
        self._pool = ActorPool(actors, timeout_s=cluster.group_timeout_s)
        self._await_start([self._learner, *actors], cluster.start_timeout_s)

    @property
    def num_actors(self) -> int:
        return self._pool.num_actors

    def launch(self, request: RolloutRequest) -> None:
        self._pool.submit(request)

    def next_summary(self) -> GroupSummary:
        summary, group = self._pool.next_finished()
        self._groups[summary.index] = group
        return summary

    def keep(self, index: int) -> None:
        self._learner.receive.remote(self._groups.pop(index))

    def drop(self, index: int) -> None:
        del self._groups[index]

    def update(self, indices: Sequence[int]) -> UpdateReport:
        report: UpdateReport = self._ask_learner(self._learner.update.remote(indices))
        return report

    def broadcast(self) -> Weights:
        reference = self._learner.weights.remote()
        weights: Weights = self._ask_learner(reference)
        for actor, checksum in enumerate(self._pool.load(reference)):
            if checksum != weights.checksum:
                raise WorkerError(
                    f"rollout actor {actor} holds {checksum}, not the learner's {weights.checksum} "
                    f"of version {weights.version}"
                )
        return weights

    def close(self) -> None:
        self._pool.kill()
        ray.kill(self._learner, no_restart=True)
        if self._owns_ray:
            ray.shutdown()

    def _ask_learner(self, reference: ray.ObjectRef) -> Any:
        try:
            return ray.get(reference, timeout=self._timeout_s)
        except RAY_FAILURES as error:
            raise WorkerError(f"the learner: {error}") from error

    def _await_start(self, actors: Sequence[Any], timeout_s: float) -> None:
        started = [actor.__ray_ready__.remote() for actor in actors]
        ready, waiting = ray.wait(started, num_returns=len(started), timeout=timeout_s)
        try:
            ray.get(ready, timeout=timeout_s)
        except RAY_FAILURES as error:
            self.close()
            raise WorkerError(f"an actor failed to start: {error}") from error
        if waiting:
            self.close()
            raise WorkerError(
                f"asked for a learner and {len(actors) - 1} rollout actors; {len(ready)} of these "
                f"{len(actors)} processes started within {timeout_s:g} s"
            )
