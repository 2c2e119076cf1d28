"""The system on Ray: a pool of rollout actors and a group of learners.

The driver reads group summaries only. An accepted group is passed to the learner by reference, so data in Ray's
object store (results above about 100 kB) moves from actor to learner without passing through the driver. Weights are
broadcast as one object that all actors of a node share.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ray

from ript_ray.errors import WorkerError
from ript_ray.rl.hosting import Hosting
from ript_ray.rl.learner import UpdateReport
from ript_ray.rl.parts import PartialGroups, split
from ript_ray.rl.process_usage import process_usage
from ript_ray.rl.protocols import Components, DispatchCounts, Rerun, RuntimeUsage
from ript_ray.runtime.actor_pool import ActorPool
from ript_ray.runtime.autoscaler import RoomRequest
from ript_ray.runtime.capacity import ActorCapacity
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.heartbeat import HEARTBEAT_S, Heartbeat
from ript_ray.runtime.learner_group import LearnerGroup
from ript_ray.runtime.limits import Limits
from ript_ray.runtime.nodes import NodeWatch, live_nodes
from ript_ray.runtime.placement import actor_bundle, placed
from ript_ray.runtime.ray_calls import NO_TASK_EVENTS, get_result
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
        when nodes join. Learners that reserve cores or GPUs come first: actors could take these.

        Args:
            parts: Components of actors and learners.
            cluster: Number of actors, their resources and timeouts.
            with_learner: False to start no learner; then only requests can be run.

        Raises:
            ConfigError: `cluster.num_actors` is not set, not a single actor fits, and no node can join.
            WorkerError: No node with room for an actor joined within `cluster.node_timeout_s`, or no process started
                within `cluster.start_timeout_s`.
        """
        self._cluster = cluster
        self._requests: dict[int, RolloutRequest] = {}
        self._groups: dict[int, tuple[ray.ObjectRef, ...]] = {}
        self._partial: PartialGroups[ray.ObjectRef] = PartialGroups()
        self._summaries: dict[int, GroupSummary] = {}
        self._num_rolled_out = 0
        build_policy = ray.put(parts.build_policy)  # stored once per node, shared by its actors
        self._learners: LearnerGroup | None = None
        num_learners = parts.num_learners if with_learner else 0
        if cluster.num_actors is None and cluster.joined_address is None:  # no node will join
            cluster.count_actors(live_nodes(), num_learners)
        self._request = RoomRequest(cluster, num_learners)
        self._ahead = RunAhead(0)
        with contextlib.ExitStack() as started:
            started.callback(self._request.end)
            if with_learner:
                self._learners = self._start_learners(parts, build_policy)
                started.callback(self._learners.kill)
            self._pool = self._start_pool(parts, build_policy, num_learners)
            started.callback(self._pool.kill)
            self._await_start()
            self._started = started.pop_all()

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
        return total(process_usage(), logs | {"learner": self._learners.usage} if self._learners else logs)

    def launch(self, request: RolloutRequest) -> None:
        self._requests[request.index] = request
        for part in self._ahead.launch(request):
            self._pool.submit(part)

    def run_ahead(self, request_of: Callable[[int], RolloutRequest] | None, first_index: int) -> None:
        limit = self._cluster.run_ahead
        self._ahead.limit = self.num_actors * self._cluster.groups_per_actor if limit is None else limit
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
                num_running = self.dispatch_counts.num_running
                logger.info("rollout requests running: %d, on %d actors%s", num_running, self.num_alive, learner)

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
        self._started.close()

    @property
    def _learner(self) -> LearnerGroup:
        assert self._learners, "this runtime was started without a learner"
        return self._learners

    def _start_learners(self, parts: Components, build_policy: ray.ObjectRef) -> LearnerGroup:
        learners = LearnerGroup(parts, build_policy, self._cluster, request=self._request, make_room=self._make_room)
        if self._cluster.learner_reserves:
            try:
                learners.await_start(self._cluster.start_timeout_s)
            except BaseException:
                learners.kill()
                raise
        return learners

    def _start_pool(self, parts: Components, build_policy: ray.ObjectRef, num_learners: int) -> ActorPool:
        cluster = self._cluster
        return ActorPool(
            _actor_starter(parts, build_policy, cluster),
            Limits(
                start_timeout_s=cluster.start_timeout_s,
                group_timeout_s=cluster.group_timeout_s,
                max_replacements=cluster.max_replacements,
                straggler_factor=cluster.straggler_factor,
            ),
            capacity=ActorCapacity(
                NodeWatch(cluster, num_learners, self._learner_nodes, self._request).look,
                cluster.num_actors,
                timeout_s=cluster.node_timeout_s,
            ),
            ahead=self._ahead,
            groups_per_actor=cluster.groups_per_actor,
        )

    def _make_room(self) -> None:
        if nodes := self._cluster.contested(live_nodes()):
            self._pool.vacate(nodes)

    def _learner_nodes(self) -> Sequence[str]:
        return self._learners.nodes if self._learners else ()

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
        if self._learners and not self._learners.nodes:
            self._learners.await_start(self._cluster.start_timeout_s)


def _actor_starter(parts: Components, build_policy: ray.ObjectRef, cluster: Cluster) -> Callable[[int], Any]:
    """Return what starts the rollout actor of a slot and returns its handle."""
    resources = {"num_cpus": cluster.cpus_per_actor, "num_gpus": cluster.gpus_per_actor}
    options = {"max_concurrency": cluster.groups_per_actor, **NO_TASK_EVENTS}
    worker_class = ray.remote(**resources, **options)(LoggedRolloutWorker)
    max_tasks = cluster.max_tasks or parts.max_tasks
    hosting = Hosting(cluster.max_environments, max_tasks, cluster.env_processes, cluster.groups_per_actor)
    arguments = (package_level(), build_policy, parts.make_environment, parts.max_steps, hosting)

    def start(slot: int) -> Any:
        strategy = placed("SPREAD", actor_bundle(slot, cluster.num_actors))
        return worker_class.options(scheduling_strategy=strategy).remote(*arguments, device=cluster.actor_device)

    return start
