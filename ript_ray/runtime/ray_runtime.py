"""The system on Ray: a pool of rollout actors and a group of learners.

The driver reads group summaries only. An accepted group is passed to the learner by reference, so data in Ray's
object store (results above about 100 kB) moves from actor to learner without passing through the driver. Weights are
broadcast as one object that all actors of a node share.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import ray

from ript_ray.errors import WorkerError
from ript_ray.rl.learner import UpdateReport
from ript_ray.rl.parts import PartialGroups, split
from ript_ray.rl.protocols import Components, DispatchCounts, Rerun, RuntimeUsage
from ript_ray.runtime.actor_pool import ActorPool
from ript_ray.runtime.capacity import ActorCapacity
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.heartbeat import HEARTBEAT_S, Heartbeat
from ript_ray.runtime.learner_group import LearnerGroup
from ript_ray.runtime.limits import Limits
from ript_ray.runtime.ray_calls import NO_TASK_EVENTS, get_result
from ript_ray.runtime.ray_session import node_cpus
from ript_ray.runtime.remote_logs import LoggedRolloutWorker, package_level
from ript_ray.runtime.run_ahead import Finished, RunAhead
from ript_ray.runtime.usage import total
from ript_ray.types import Arrays, Group, GroupSummary, RolloutRequest, Version, Weights

logger = logging.getLogger(__name__)


class RayRuntime:
    """See `Runtime`."""

    def __init__(self, parts: Components, cluster: Cluster, *, with_learner: bool = True):
        """Start the rollout actors and the learners and wait for them; Ray must be initialized.

        If nodes are missing, the runtime starts with the actors that fit, logs the shortage, and starts the others
        when nodes join.

        Args:
            parts: Components of actors and learners.
            cluster: Number of actors, their resources and timeouts.
            with_learner: False to start no learner; then only requests can be run.

        Raises:
            ConfigError: `cluster.num_actors` is not set and not a single actor fits.
            WorkerError: No actor started within `cluster.start_timeout_s`.
        """
        self._cluster = cluster
        self._requests: dict[int, RolloutRequest] = {}
        self._groups: dict[int, tuple[ray.ObjectRef, ...]] = {}
        self._partial: PartialGroups[ray.ObjectRef] = PartialGroups()
        self._summaries: dict[int, GroupSummary] = {}
        self._num_rolled_out = 0
        build_policy = ray.put(parts.build_policy)  # stored once per node, shared by its actors
        self._learners: LearnerGroup | None = None
        if with_learner:
            self._learners = LearnerGroup(
                parts, build_policy, num_cpus=cluster.learner_cpus, timeout_s=cluster.update_timeout_s
            )
        worker_class = ray.remote(num_cpus=cluster.cpus_per_actor, scheduling_strategy="SPREAD", **NO_TASK_EVENTS)(
            LoggedRolloutWorker
        )
        num_learners = parts.num_learners if with_learner else 0
        num_actors = cluster.num_actors or cluster.count_actors(node_cpus(), num_learners)
        capacity = ActorCapacity(
            lambda: cluster.num_fitting(node_cpus(), num_learners),
            num_actors,
            timeout_s=cluster.start_timeout_s,
        )
        environments = (cluster.max_environments, cluster.max_tasks or parts.max_tasks, cluster.env_processes)
        arguments = (package_level(), build_policy, parts.make_environment, parts.max_steps, *environments)
        self._ahead = RunAhead(num_actors if cluster.run_ahead is None else cluster.run_ahead)
        self._pool = ActorPool(
            lambda: worker_class.remote(*arguments),
            num_actors,
            Limits(
                start_timeout_s=cluster.start_timeout_s,
                group_timeout_s=cluster.group_timeout_s,
                max_replacements=cluster.max_replacements,
                straggler_factor=cluster.straggler_factor,
            ),
            capacity=capacity,
            ahead=self._ahead,
        )
        try:
            self._await_start()
        except BaseException:
            self.close()
            raise

    @property
    def num_actors(self) -> int:
        return self._pool.num_actors

    @property
    def num_alive(self) -> int:
        return self._pool.num_ready

    @property
    def dispatch_counts(self) -> DispatchCounts:
        counts, ahead = self._pool.dispatch_counts, self._ahead
        return replace(
            counts,
            num_dispatched=counts.num_dispatched - self._num_rolled_out,
            num_speculated=counts.num_speculated + ahead.num_dropped,
            num_running=counts.num_running + ahead.num_held + len(self._partial),
        )

    @property
    def usage(self) -> RuntimeUsage:
        logs = {"actor": self._pool.usage}
        return total(logs | {"learner": self._learners.usage} if self._learners else logs)

    def launch(self, request: RolloutRequest) -> None:
        self._requests[request.index] = request
        for part in self._ahead.launch(request):
            self._pool.submit(part)

    def run_ahead(self, request_of: Callable[[int], RolloutRequest] | None, first_index: int) -> None:
        if request_of is None:
            self._stop_running_ahead()
        else:
            self._ahead.start(request_of, first_index)

    def next_event(self) -> GroupSummary | UpdateReport:
        last_sign = time.monotonic()
        while True:
            if self._learners and (report := self._learners.finished_update()):
                return report
            self._collect_finished()
            if finished := self._ahead.next_launched():
                summary, group = finished
                self._groups[summary.index] = group
                self._summaries[summary.index] = summary
                return summary
            updating = self._learners is not None and self._learners.is_updating
            assert updating or self._pool.has_work, "no request or update is running: this wait would never end"
            self._pool.poll(self._learners.awaited if self._learners else [])
            if time.monotonic() - last_sign > HEARTBEAT_S:
                last_sign = time.monotonic()
                learner = ", and the learner is updating" if updating else ""
                logger.info("rollout requests running: %d%s", self.dispatch_counts.num_running, learner)

    def roll_out(self, requests: Sequence[RolloutRequest]) -> list[GroupSummary]:
        for request in requests:
            self._pool.submit(request)
        summaries: dict[int, GroupSummary] = {}
        heartbeat = Heartbeat("evaluating, rollouts", sum(len(request.contexts) for request in requests))
        while len(summaries) < len(requests):
            heartbeat.beat(sum(len(summary.successes) for summary in summaries.values()))
            self._pool.poll()
            self._collect_finished()
            for request in requests:
                if finished := self._ahead.take_launched(request.index):
                    summaries[request.index] = finished[0]
        self._num_rolled_out += len(requests)
        return [summaries[request.index] for request in requests]

    def send_to_learner(self, index: int) -> None:
        self._learner.receive(index, self._groups.pop(index))

    def give(self, request: RolloutRequest, summary: GroupSummary, group: Group) -> None:
        self._requests[request.index], self._summaries[request.index] = request, summary
        self._learner.receive(request.index, [ray.put(group)])

    def discard(self, index: int) -> None:
        del self._groups[index], self._requests[index], self._summaries[index]

    def start_update(self, indices: Sequence[int]) -> Sequence[Rerun]:
        admitted = {index: self._summaries[index] for index in indices}
        while lost := self._learner.undelivered(indices):
            self._rerun_undelivered(lost)
        changed = [
            Rerun(summary, self._summaries[index])
            for index, summary in admitted.items()
            if self._summaries[index] != summary
        ]
        for index in indices:
            del self._requests[index], self._summaries[index]
        self._learner.start_update(indices)
        return changed

    def broadcast(self) -> Weights:
        self._stop_running_ahead()  # what was run ahead has the old weights
        reference = self._learner.weights()
        weights: Weights = get_result(reference, "the learner's weights", self._cluster.update_timeout_s)
        self._pool.load(reference, weights)
        # The caller's copy must outlive Ray's object store, where the buffer is.
        return replace(weights, buffer=weights.buffer.copy())

    def learner_state(self) -> Arrays:
        return self._learner.state()

    def restore(self, version: Version, state: Arrays) -> None:
        self._learner.restore(version, state)

    def close(self) -> None:
        self._pool.kill()
        if self._learners:
            self._learners.kill()

    @property
    def _learner(self) -> LearnerGroup:
        assert self._learners, "this runtime was started without a learner"
        return self._learners

    def _collect_finished(self) -> None:
        while finished := self._pool.next_finished():
            if complete := self._partial.add(*finished):
                self._ahead.finish(complete)

    def _stop_running_ahead(self) -> None:
        self._collect_finished()
        for key in self._ahead.stop():
            self._pool.cancel(key)
            self._ahead.num_dropped += self._partial.drop(key[0])

    def _rerun_undelivered(self, lost: Sequence[tuple[int, Exception]]) -> None:
        """Rerun groups whose node was lost before the learner received them; at lag 0 the reruns are bit-identical.

        With policy lag the rerun may use newer weights. Its result is trained even if it is uniform (the gradient is
        then zero), but a malformed result is run again.
        """
        for index, error in lost:
            self._rerun(index, error)
        missing = {index for index, _ in lost}
        while missing:
            self._pool.poll()
            self._collect_finished()
            for index in sorted(missing):
                if finished := self._ahead.take_launched(index):
                    self._accept_rerun(finished, missing)

    def _rerun(self, index: int, error: Exception) -> None:
        for part in split(self._requests[index]):
            self._pool.rerun(part, error)

    def _accept_rerun(self, finished: Finished, missing: set[int]) -> None:
        summary, group = finished
        index = summary.index
        if summary.error or summary.layout != self._summaries[index].layout:
            self._rerun(index, WorkerError(summary.error or "the layout of its record changed"))
            return
        self._summaries[index] = summary
        self._learner.receive(index, group)
        missing.remove(index)

    def _await_start(self) -> None:
        """Wait for every actor that fits, and for the learners."""
        heartbeat = Heartbeat("starting rollout actors", self._pool.num_actors)
        while self._pool.num_starting or not self._pool.num_ready:
            heartbeat.beat(self._pool.num_ready)
            self._pool.poll()
        if self._learners:
            self._learners.await_start(self._cluster.start_timeout_s)
