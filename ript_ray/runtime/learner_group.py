"""The learner processes on Ray: one, or several data-parallel ones with identical weights."""

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ript_ray.errors import WorkerError
from ript_ray.rl.learner import UpdateReport
from ript_ray.rl.protocols import Components
from ript_ray.runtime.ray_calls import NO_TASK_EVENTS, get_result, is_ready
from ript_ray.runtime.remote_logs import Logged, LoggedLearner, LogRelay, package_level
from ript_ray.runtime.usage import UsageLog
from ript_ray.types import Arrays, Version


class LearnerGroup:
    """Sends every group to all learners and runs updates on all; weights and state are read from the first."""

    def __init__(self, parts: Components, build_policy: ray.ObjectRef, *, num_cpus: float, timeout_s: float):
        """Start the learner processes; `await_start` waits for them.

        Args:
            parts: Components of the experiment.
            build_policy: Policy factory, in the object store.
            num_cpus: Cores that Ray reserves per learner.
            timeout_s: Timeout of each call, in seconds.
        """
        # Prefer the driver's node: if it dies, the run ends anyway.
        near = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        learner_class = ray.remote(num_cpus=num_cpus, scheduling_strategy=near, **NO_TASK_EVENTS)(LoggedLearner)
        options: dict[str, Any] = {"seed": parts.seed, "num_threads": parts.learner_threads}
        self._timeout_s = timeout_s
        self._learners = [
            learner_class.remote(package_level(), build_policy, parts.ppo, **options) for _ in range(parts.num_learners)
        ]
        self._logs = LogRelay("learner")
        self.usage = UsageLog()
        self._receipts: dict[int, list[ray.ObjectRef]] = {}
        self._update: list[ray.ObjectRef] = []
        self._started = 0.0

    def await_start(self, timeout_s: float) -> None:
        """Wait until all learners have started and joined one process group.

        Raises:
            WorkerError: A learner failed, or did not start within `timeout_s`.
        """
        for learner in self._learners:
            get_result(learner.__ray_ready__.remote(), "the learner's start", timeout_s)
        size = len(self._learners)
        if size == 1:
            return
        first = self._learners[0]
        find_host = first.__ray_call__.remote(lambda _: ray.util.get_node_ip_address())
        host = get_result(find_host, "the learner's address", timeout_s)
        address = get_result(first.open_store.remote(host), "the learners' store", timeout_s)
        joined = [
            learner.join.remote(address, rank=rank, size=size, timeout_s=self._timeout_s)
            for rank, learner in enumerate(self._learners)
        ]
        for answer in joined:
            get_result(answer, "a learner joining the process group", timeout_s)

    @property
    def is_updating(self) -> bool:
        """Whether an update was started whose report has not been returned yet, finished or not."""
        return bool(self._update)

    @property
    def awaited(self) -> list[ray.ObjectRef]:
        """Pending answers of the running update."""
        return [answer for answer in self._update if not is_ready(answer)]

    def receive(self, index: int, group: ray.ObjectRef) -> None:
        """Have every learner fetch a group."""
        self._receipts[index] = [learner.receive.remote(group) for learner in self._learners]

    def undelivered(self, indices: Sequence[int]) -> list[tuple[int, Exception]]:
        """Return which of these groups did not reach every learner because the node that stored them is lost.

        Each delivery is checked once; call `receive` again for every lost group.

        Raises:
            WorkerError: A learner itself failed.
        """
        lost: list[tuple[int, Exception]] = []
        deadline = time.monotonic() + self._timeout_s
        for index in [index for index in indices if index in self._receipts]:
            try:
                ray.get(self._receipts.pop(index), timeout=max(0.0, deadline - time.monotonic()))
            except ray.exceptions.GetTimeoutError as error:
                raise WorkerError(f"group {index} did not reach the learner within {self._timeout_s:g} s") from error
            except ray.exceptions.RayError as error:
                # For a lost group Ray reports the death of its actor or the loss of its object: many error types.
                self._require_alive()
                lost.append((index, error))
        return lost

    def _require_alive(self) -> None:
        for learner in self._learners:
            get_result(learner.__ray_ready__.remote(), "the learner", self._timeout_s)

    def start_update(self, indices: Sequence[int]) -> None:
        """Start an update on groups that all learners have received."""
        assert not self._update
        self._started = time.monotonic()
        self._update = [learner.update_logged.remote(indices) for learner in self._learners]

    def finished_update(self) -> UpdateReport | None:
        """Return the report of the running update once all learners have finished, else none.

        Raises:
            WorkerError: A learner failed or timed out.
        """
        if not self._update:
            return None
        # If one fails, the others wait for it forever, so check each as soon as it has answered.
        answered = {rank: answer for rank, answer in enumerate(self._update) if is_ready(answer)}
        answers = {rank: self._answer_of(rank, answer) for rank, answer in answered.items()}
        if len(answers) < len(self._update):
            if time.monotonic() - self._started > self._timeout_s:
                raise WorkerError(f"the learner: no answer within {self._timeout_s:g} s (cluster.update-timeout-s)")
            return None
        self._update = []
        for rank, answer in answers.items():
            self._logs.relay(rank, answer.entries)
            self.usage.note(rank, answer.usage)
        return answers[0].value

    def _answer_of(self, rank: int, reference: ray.ObjectRef) -> Logged[UpdateReport]:
        try:
            answer: Logged[UpdateReport] = get_result(reference, "the learner", self._timeout_s)
        except WorkerError as error:
            self._logs.relay_from(rank, error.__cause__)
            raise
        return answer

    def weights(self) -> ray.ObjectRef:
        """Return a reference to the current weights."""
        return self._learners[0].weights.remote()

    def state(self) -> Arrays:
        """Return the learner's state without its weights; see `Learner.state`."""
        state: Arrays = get_result(self._learners[0].state.remote(), "the learner's state", self._timeout_s)
        return state

    def restore(self, version: Version, state: Arrays) -> None:
        """Restore every learner from a checkpoint; see `Learner.restore`."""
        for answer in [learner.restore.remote(version, state) for learner in self._learners]:
            get_result(answer, "the learner", self._timeout_s)

    def kill(self) -> None:
        """Kill all learner processes."""
        self._logs.flush()
        for learner in self._learners:
            ray.kill(learner, no_restart=True)
