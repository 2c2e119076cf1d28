"""The system on Ray: a pool of rollout actors and one learner actor.

The driver reads summaries only. A group goes to the learner by reference, as soon as it is accepted; what
Ray keeps in its object store (results above some 100 kB) moves from actor to learner alone. Weights go out
as one object that all actors of a node share.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray

from ript_ray.errors import WorkerError
from ript_ray.learner import Learner, UpdateReport
from ript_ray.machine import num_cpus
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.contract import Parts
from ript_ray.runtime.pool import ActorPool, Limits, answer_of
from ript_ray.runtime.worker import RolloutWorker
from ript_ray.types import Arrays, Faults, GroupSummary, RolloutRequest, Version, Weights


@contextlib.contextmanager
def ray_session(cluster: Cluster) -> Iterator[None]:
    """Start Ray here, or join the cluster that `cluster` names; leave it at the end.

    Raises:
        WorkerError: There is no Ray cluster at the address, or Ray does not start.
        ConfigError: It does not hold the actors asked for.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = cluster.joined_address
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            ray.init(address="local", num_cpus=num_cpus(), include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise WorkerError(f"cannot use Ray at {address or 'this machine'}: {error}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray has put its own in place: it would end us unsaved
    try:
        cluster.count_actors(ray_cpus())
        yield
    finally:
        ray.shutdown()


def ray_cpus() -> float:
    """Cores that Ray knows of."""
    return float(ray.cluster_resources().get("CPU", 0.0))


class RayRuntime:
    """See `Runtime`."""

    def __init__(self, parts: Parts, cluster: Cluster, *, with_learner: bool = True):
        """Start the rollout actors and the learner, and wait until all of them answer. Ray must be there.

        Args:
            parts: What they are made of.
            cluster: How many, and what each may use.
            with_learner: False where nothing is learned: then only requests can be run.

        Raises:
            ConfigError: Ray does not hold the actors asked for.
            WorkerError: They do not start within `cluster.start_timeout_s`.
        """
        num_actors = cluster.count_actors(ray_cpus())
        self._update_timeout_s = cluster.update_timeout_s
        self._groups: dict[int, ray.ObjectRef] = {}
        build_policy = ray.put(parts.build_policy)  # stored once, read by every actor of a node
        self._learners = []
        if with_learner:
            learner_class = ray.remote(num_cpus=cluster.learner_cpus)(Learner)
            learner = learner_class.remote(build_policy, parts.ppo, seed=parts.seed, num_threads=parts.learner_threads)
            self._learners.append(learner)
        worker_class = ray.remote(num_cpus=cluster.cpus_per_actor)(RolloutWorker)
        limits = Limits(cluster.start_timeout_s, cluster.group_timeout_s, cluster.max_replacements)
        self._pool = ActorPool(
            lambda: worker_class.remote(build_policy, parts.make_environment, parts.max_steps), num_actors, limits
        )
        try:
            self._pool.await_start()
            for learner in self._learners:
                answer_of(learner.__ray_ready__.remote(), "the learner's start", cluster.start_timeout_s)
        except WorkerError:
            self.close()
            raise

    @property
    def num_actors(self) -> int:
        return self._pool.num_actors

    @property
    def faults(self) -> Faults:
        return self._pool.faults

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
        self._pool.load(reference, weights.checksum)
        # The caller's copy must outlive Ray's object store.
        return replace(weights, buffer=weights.buffer.copy())

    def learner_state(self) -> Arrays:
        state: Arrays = self._ask_learner(self._learner.state.remote())
        return state

    def restore(self, version: Version, state: Arrays) -> None:
        self._ask_learner(self._learner.restore.remote(version, state))

    def close(self) -> None:
        self._pool.kill()
        for learner in self._learners:
            ray.kill(learner, no_restart=True)

    @property
    def _learner(self) -> Any:
        assert self._learners, "this runtime was started without a learner"
        return self._learners[0]

    def _ask_learner(self, reference: ray.ObjectRef) -> Any:
        return answer_of(reference, "the learner (cluster.update-timeout-s)", self._update_timeout_s)
