"""The learner processes on Ray: one, or several data-parallel ones with identical weights."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ript_ray.errors import PeerError, WorkerError
from ript_ray.rl.learner import UpdateReport
from ript_ray.rl.protocols import Components
from ript_ray.runtime.host import processor_kind
from ript_ray.runtime.learner_watch import PROGRESS, LearnerWatch
from ript_ray.runtime.limits import MAX_UPDATE_ATTEMPTS
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
    """Sends every group to all learners and runs updates on all; weights and state are read from the first.

    Everything that an update depends on is kept until it has finished: its groups, and the weights and moments as they
    were before, all as references into Ray's object store. If a learner dies or hangs, all of them are replaced and
    repeat the update, to the same bits.
    """

    def __init__(self, parts: Components, build_policy: ray.ObjectRef, *, num_cpus: float, timeout_s: float):
        """Start the learner processes; `await_start` waits for them.

        Args:
            parts: Components of the experiment.
            build_policy: Policy factory, in the object store.
            num_cpus: Cores that Ray reserves per learner.
            timeout_s: Longest time without progress in an update, and timeout of every other call, in seconds.
        """
        # Prefer the driver's node: if it dies, the run ends anyway.
        near = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._class = ray.remote(
            num_cpus=num_cpus, scheduling_strategy=near, concurrency_groups={PROGRESS: 1}, **NO_TASK_EVENTS
        )(LoggedLearner)
        self._arguments = (package_level(), build_policy, parts.ppo)
        self._options: dict[str, Any] = {
            "seed": parts.seed,
            "num_threads": parts.learner_threads,
            "parameter_groups": parts.parameter_groups,
        }
        self._keep_group = parts.keep_group
        self._size = parts.num_learners
        self._timeout_s = self._start_timeout_s = timeout_s
        self._logs = LogRelay("learner")
        self._version = Version(0)
        self._weights: ray.ObjectRef | None = None
        self._state: ray.ObjectRef | None = None
        self._groups: dict[int, tuple[ray.ObjectRef, ...]] = {}
        self.usage = UsageLog()
        self._receipts: dict[int, list[ray.ObjectRef]] = {}
        self._batch: Sequence[int] = ()
        self._update: list[ray.ObjectRef] = []
        self._watch: LearnerWatch
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
        """Have every learner fetch the parts of a group."""
        self._groups[index] = tuple(parts)
        self._receipts[index] = [learner.receive.remote(*parts) for learner in self._learners]

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
        self._learners = [
            self._class.remote(*self._arguments, **self._options, keep_group=None if rank else self._keep_group)
            for rank in range(self._size)
        ]

    def _connect(self) -> None:
        """Wait for the learners; several join one process group, on one machine over its loopback address."""
        places = self._call_all("__ray_call__", _place_of, timeout_s=self._start_timeout_s)
        if self._size == 1:
            return
        is_one_machine = len({node for node, _, _ in places}) == 1
        hosts = [LOOPBACK if is_one_machine else host for _, host, _ in places]
        self._processors = [processor for _, _, processor in places]
        if len(set(self._processors)) > 1:
            logger.warning("the learners' processors may round differently: %s", "; ".join(self._processors))
        meeting = self._result(0, self._learners[0].open_store.remote(hosts[0]), self._start_timeout_s)
        joined = [
            # Longer than the watch: it finds who hangs, the connection only that somebody does.
            learner.join.remote(meeting, host=hosts[rank], rank=rank, size=self._size, timeout_s=3 * self._timeout_s)
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
        for reference in (weights, state):
            self._result(0, reference)
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
