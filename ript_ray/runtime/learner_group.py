"""The learner processes on Ray: one, or several data-parallel ones with identical weights."""

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ript_ray.errors import PeerError, WorkerError
from ript_ray.rl.learner import UpdateReport
from ript_ray.rl.protocols import Components
from ript_ray.runtime.autoscaler import RoomRequest
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.host import processor_kind
from ript_ray.runtime.learner_watch import PROGRESS, LearnerWatch
from ript_ray.runtime.limits import MAX_UPDATE_ATTEMPTS
from ript_ray.runtime.nodes import await_room_for_learners, live_nodes
from ript_ray.runtime.placement import ANY_BUNDLE, placed
from ript_ray.runtime.ray_calls import NO_TASK_EVENTS, get_result, is_ready
from ript_ray.runtime.remote_logs import Logged, LoggedLearner, LogRelay, package_level
from ript_ray.runtime.usage import UsageLog
from ript_ray.types import Arrays, Version

LOOPBACK = "127.0.0.1"

PEERS_S = 10.0
"""Time within which the cause is known of a learner that has lost the connection to another one, in seconds."""

logger = logging.getLogger(__name__)


class LearnerLostError(WorkerError):
    """A learner died or hangs: its work can be repeated by another one."""


class LearnerGroup:
    """Sends every group to one learner and its outline to the others, and runs updates on all.

    Weights and state are read from the first.

    Everything that an update depends on is kept until it has finished: its groups, and the weights and moments as they
    were before, all as references into Ray's object store. If a learner dies or hangs, all of them are replaced and
    repeat the update, to the same bits. The driver holds weights and moments besides, for the learner's node may go.

    Attributes:
        usage: Memory and processor time of the learners.
        nodes: Ids of the nodes that they are on, by rank; empty until that is known.
    """

    def __init__(
        self,
        parts: Components,
        build_policy: ray.ObjectRef,
        cluster: Cluster,
        *,
        request: RoomRequest,
        make_room: Callable[[], None],
    ):
        """Start the learner processes; `await_start` waits for them.

        Args:
            parts: Components of the experiment.
            build_policy: Policy factory, in the object store.
            cluster: What Ray reserves per learner, and the timeout of an update, which is that of all other calls, too.
            request: Repeated while no node has room for a learner.
            make_room: Frees what else the run has reserved where learners fit; called before lost ones are replaced.

        Raises:
            WorkerError: No node with room for a learner joined in time.
        """
        self._cluster, self._request, self._make_room = cluster, request, make_room
        # Prefer the driver's node: if it dies, the run ends anyway.
        self._near = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._class = ray.remote(
            num_cpus=cluster.learner_cpus,
            num_gpus=cluster.learner_gpus,
            concurrency_groups={PROGRESS: 1},
            **NO_TASK_EVENTS,
        )(LoggedLearner)
        self._arguments = (package_level(), build_policy, parts.ppo)
        self._options: dict[str, Any] = {
            "seed": parts.seed,
            "num_threads": parts.learner_threads,
            "parameter_groups": parts.parameter_groups,
            "device": "cpu" if cluster.shard_base else cluster.learner_device,
            "keep_group": parts.keep_group,
        }
        self._shard_on = cluster.learner_device if cluster.shard_base else None
        self._size = parts.num_learners
        self._timeout_s = self._start_timeout_s = cluster.update_timeout_s
        self._logs = LogRelay("learner")
        self._version = Version(0)
        self._weights: ray.ObjectRef | None = None
        self._state: ray.ObjectRef | None = None
        self._groups: dict[int, tuple[ray.ObjectRef, ...]] = {}
        self._held: list[Any] = []
        self.usage = UsageLog()
        self._receipts: dict[int, list[ray.ObjectRef]] = {}
        self._homes = itertools.cycle(range(self._size))
        self._batch: Sequence[int] = ()
        self._update: list[ray.ObjectRef] = []
        self._watch: LearnerWatch
        self.nodes: list[str] = []
        self._processors: list[str] = []
        self._num_attempts = 0
        self._start()

    def await_start(self, timeout_s: float) -> None:
        """Wait until all learners have started and joined one process group.

        Raises:
            WorkerError: A learner failed, or did not start within `timeout_s`.
        """
        self._start_timeout_s = timeout_s
        self._connect()
        self._keep_state(self._version)

    @property
    def is_updating(self) -> bool:
        """Whether an update was started whose report has not been returned yet, finished or not."""
        return bool(self._update)

    @property
    def awaited(self) -> list[ray.ObjectRef]:
        """Pending answers of the running update."""
        return [answer for answer in self._update if not is_ready(answer)]

    def receive(self, index: int, parts: Sequence[ray.ObjectRef]) -> None:
        """Have one learner, each in its turn, fetch the parts of a group, and the others its outline."""
        self._groups[index] = tuple(parts)
        home = self._learners[next(self._homes)]
        outline = home.receive.remote(*parts)
        others = [learner.receive_outline.remote(outline) for learner in self._learners if learner is not home]
        self._receipts[index] = [outline, *others]

    def undelivered(self, indices: Sequence[int]) -> list[tuple[int, Exception]]:
        """Return which of these groups did not reach every learner because the node that stored them is lost.

        Each delivery is checked once; call `receive` again for every lost group.

        Raises:
            WorkerError: Learners died too often.
        """
        while True:
            try:
                return self._check_deliveries(indices)
            except LearnerLostError as error:
                self._recover(error)

    def start_update(self, indices: Sequence[int]) -> None:
        """Start an update on groups that all learners have received."""
        assert not self._update
        self._batch = indices
        self._watch = LearnerWatch(self._learners, self._version + 1, self._timeout_s)
        self._update = [learner.update_logged.remote(indices) for learner in self._learners]

    def finished_update(self) -> UpdateReport | None:
        """Return the report of the running update once all learners have finished, else none.

        Raises:
            WorkerError: A learner raised an exception, learners died or hung too often, or their weights differ.
        """
        if not self._update:
            return None
        try:
            answers = self._answers()
            if answers is None:
                return None
            self._keep_state(Version(self._version + 1))
        except LearnerLostError as error:
            self._recover(error)
            return None
        for index in self._batch:
            del self._groups[index]
        self._batch, self._update, self._num_attempts = (), [], 0
        for rank, answer in enumerate(answers):
            self._logs.relay(rank, answer.entries)
            self.usage.note(rank, answer.usage)
        return answers[0].value

    def weights(self) -> ray.ObjectRef:
        """Return a reference to the weights after the last finished update."""
        assert self._weights is not None
        return self._weights

    def state(self) -> Arrays:
        """Return the learner's state then, without its weights; see `Learner.state`."""
        assert self._state is not None
        state: Arrays = get_result(self._state, "the learner's state", self._timeout_s)
        return state

    def restore(self, version: Version, state: Arrays) -> None:
        """Restore every learner from a checkpoint; see `Learner.restore`."""
        self._call_all("restore", version, state)
        self._keep_state(version)

    def kill(self) -> None:
        """Kill all learner processes."""
        self._logs.flush()
        for learner in self._learners:
            ray.kill(learner, no_restart=True)

    def _start(self) -> None:
        await_room_for_learners(self._cluster, self._size, self._request)
        if self._cluster.learner_reserves and not set(self.nodes) <= {node.id for node in live_nodes()}:
            self._make_room()
        self._learners = [self._start_one(rank) for rank in range(self._size)]

    def _start_one(self, rank: int) -> Any:
        bundle = rank if self._cluster.learner_reserves else ANY_BUNDLE
        learner_class = self._class.options(scheduling_strategy=placed(self._near, bundle))
        return learner_class.remote(*self._arguments, **self._options)

    def _connect(self) -> None:
        """Wait for the learners; several join one process group, on one machine over its loopback address."""
        places = self._call_all("__ray_call__", _place_of, timeout_s=self._start_timeout_s)
        self.nodes = [node for node, _, _ in places]
        if self._size == 1:
            return
        is_one_machine = len(set(self.nodes)) == 1
        hosts = [LOOPBACK if is_one_machine else host for _, host, _ in places]
        self._processors = [processor for _, _, processor in places]
        if len(set(self._processors)) > 1:
            logger.warning("the learners' processors may round differently: %s", "; ".join(self._processors))
        meeting = self._result(0, self._learners[0].open_store.remote(hosts[0]), self._start_timeout_s)
        # Longer than the watch: it finds who hangs, the connection only that somebody does.
        options = {"size": self._size, "timeout_s": 3 * self._timeout_s, "shard_on": self._shard_on}
        joined = [
            learner.join.remote(meeting, host=hosts[rank], rank=rank, **options)
            for rank, learner in enumerate(self._learners)
        ]
        for rank, answer in enumerate(joined):
            self._result(rank, answer, self._start_timeout_s)

    def _keep_state(self, version: Version) -> None:
        """Keep the learners' present state, that of `version`; several learners must agree on the weights."""
        first = self._learners[0]
        weights, state = first.weights.remote(), first.state.remote()
        if self._size > 1:
            self._require_equal(version, self._call_all("checksum"))
        # Held, Ray's copies of these on the driver's node are not evicted: the learner's node may be lost.
        self._held = [self._result(0, reference) for reference in (weights, state)]
        self._version, self._weights, self._state = version, weights, state

    def _require_equal(self, version: Version, checksums: Sequence[str]) -> None:
        for rank, checksum in enumerate(checksums):
            if checksum != checksums[0]:
                raise WorkerError(
                    f"after update {version} the weights of learner {rank} ({self._processors[rank]}, checksum "
                    f"{checksum}) differ from those of learner 0 ({self._processors[0]}, checksum {checksums[0]}); "
                    "run all learners on processors of one kind, and resume"
                )

    def _answers(self) -> list[Logged[UpdateReport]] | None:
        """Return the answers to the running update, or none while one is missing.

        Raises:
            LearnerLostError: A learner died or hangs.
        """
        ready = {rank: answer for rank, answer in enumerate(self._update) if is_ready(answer)}
        answers, lost = [], None
        try:
            answers = [self._result(rank, answer) for rank, answer in ready.items()]
        except LearnerLostError as error:
            lost = error
        if lost is not None:
            raise self._first_cause(lost)
        if len(answers) == self._size:
            return answers
        if reason := self._watch.find_hung([rank for rank in range(self._size) if rank not in ready]):
            raise LearnerLostError(f"{reason} (cluster.update-timeout-s is {self._timeout_s:g})")
        return None

    def _first_cause(self, error: LearnerLostError) -> LearnerLostError:
        """Return the failure of a learner that died itself; others fail in consequence, and maybe earlier."""
        ready, _ = ray.wait(self._update, num_returns=self._size, timeout=PEERS_S)
        for rank, answer in enumerate(self._update):
            if answer in ready:
                try:
                    self._result(rank, answer)
                except LearnerLostError as other:
                    if isinstance(other.__cause__, ray.exceptions.RayActorError):
                        return other
        return error

    def _check_deliveries(self, indices: Sequence[int]) -> list[tuple[int, Exception]]:
        lost: list[tuple[int, Exception]] = []
        deadline = time.monotonic() + self._timeout_s
        for index in [index for index in indices if index in self._receipts]:
            try:
                ray.get(self._receipts.pop(index), timeout=max(0.0, deadline - time.monotonic()))
            except ray.exceptions.GetTimeoutError as error:
                text = f"group {index} did not reach the learner within {self._timeout_s:g} s"
                raise LearnerLostError(text) from error
            except ray.exceptions.RayError as error:
                # For a lost group Ray reports the death of its actor or the loss of its object: many error types.
                self._call_all("__ray_ready__")
                lost.append((index, error))
        return lost

    def _recover(self, problem: LearnerLostError) -> None:
        """Replace all learners by new ones in the state before the update, and start it again if it was running.

        Raises:
            WorkerError: That was the last attempt, or a group is lost as well.
        """
        while True:
            self._num_attempts += 1
            update = self._version + 1
            if self._num_attempts >= MAX_UPDATE_ATTEMPTS:
                text = f"{problem}; update {update} has failed {MAX_UPDATE_ATTEMPTS} times"
                raise WorkerError(text) from problem
            attempt = f"attempt {self._num_attempts + 1} of at most {MAX_UPDATE_ATTEMPTS} at update {update}"
            logger.warning("%s; replacing the learners, %s", problem, attempt)
            try:
                self._replace()
                return
            except LearnerLostError as error:
                problem = error

    def _replace(self) -> None:
        self.kill()
        self._forget_receipts()
        self._update = []
        self._start()
        self._connect()
        self._call_all("restore", self._version, self._state, self._weights)
        for index, group in self._groups.items():
            self.receive(index, group)
        if not self._batch:
            return
        if lost := self._check_deliveries(self._batch):
            index, error = lost[0]
            raise WorkerError(f"group {index} of the running update is lost with its node: {error}") from error
        self.start_update(self._batch)

    def _forget_receipts(self) -> None:
        """Look at all answers of dead learners, for Ray logs errors that nobody has looked at."""
        for receipt in itertools.chain.from_iterable(self._receipts.values()):
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(receipt, timeout=0)
        self._receipts.clear()

    def _call_all(self, method: str, *arguments: Any, timeout_s: float | None = None) -> list[Any]:
        """Call a method of every learner at once and return the results."""
        answers = [getattr(learner, method).remote(*arguments) for learner in self._learners]
        return [self._result(rank, answer, timeout_s) for rank, answer in enumerate(answers)]

    def _result(self, rank: int, answer: ray.ObjectRef, timeout_s: float | None = None) -> Any:
        """Return the answer of a learner.

        Raises:
            LearnerLostError: It died, did not answer, or lost the connection to another one.
            WorkerError: It raised any other exception: repeating the call would not help.
        """
        try:
            return get_result(answer, f"learner {rank}", timeout_s or self._timeout_s)
        except WorkerError as error:
            cause = error.__cause__
            self._logs.relay_from(rank, cause)
            if isinstance(cause, ray.exceptions.RayTaskError) and not isinstance(cause.cause, PeerError):
                raise
            raise LearnerLostError(str(error).removesuffix(".")) from cause


def _place_of(learner: object) -> tuple[str, str, str]:
    """Return node, address and processor of a learner."""
    return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), processor_kind()
