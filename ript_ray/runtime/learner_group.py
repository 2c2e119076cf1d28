"""The learner processes on Ray: one, or several that share every minibatch and stay equal."""

import time
from collections.abc import Sequence

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ript_ray.errors import WorkerError
from ript_ray.rl.learner import Learner, UpdateReport
from ript_ray.rl.protocols import Components
from ript_ray.runtime.ray_calls import NO_TASK_EVENTS, get_result, is_ready
from ript_ray.types import Arrays, Version


class LearnerGroup:
    """All learners receive all groups and update together; the first one speaks for them."""

    def __init__(self, parts: Components, build_policy: ray.ObjectRef, *, num_cpus: float, timeout_s: float):
        """Start the learners; `await_start` waits for them.

        Args:
            parts: What they are made of.
            build_policy: The factory of the policy, in the object store.
            num_cpus: Cores that Ray reserves for each.
            timeout_s: Longest wait for an answer of theirs.
        """
        # On the driver's node where that has room: should that node die, the run ends anyway.
        near = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        learner_class = ray.remote(num_cpus=num_cpus, scheduling_strategy=near, **NO_TASK_EVENTS)(Learner)
        self._timeout_s = timeout_s
        self._learners = [
            learner_class.remote(build_policy, parts.ppo, seed=parts.seed, num_threads=parts.learner_threads)
            for _ in range(parts.num_learners)
        ]
        self._receipts: dict[int, list[ray.ObjectRef]] = {}
        self._update: list[ray.ObjectRef] = []
        self._started = 0.0

    def await_start(self, timeout_s: float) -> None:
        """Wait until all learners are there and know each other.

        Raises:
            WorkerError: They are not within `timeout_s`, or one fails.
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
            get_result(answer, "a learner that joins the others", timeout_s)

    @property
    def is_updating(self) -> bool:
        """Whether an update was begun whose report has not been taken, finished or not."""
        return bool(self._update)

    @property
    def awaited(self) -> list[ray.ObjectRef]:
        """Answers that are still to come for the update under way."""
        return [answer for answer in self._update if not is_ready(answer)]

    def receive(self, index: int, group: ray.ObjectRef) -> None:
        """Have every learner fetch a group."""
        self._receipts[index] = [learner.receive.remote(group) for learner in self._learners]

    def undelivered(self, indices: Sequence[int]) -> list[tuple[int, Exception]]:
        """Which of these groups did not reach every learner, because the node that held them is gone.

        A group is asked after once; `receive` has to follow for each that is lost.

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
                # Ray says of a lost group what became of the actor that made it, or of the object: many errors.
                self._require_alive()
                lost.append((index, error))
        return lost

    def _require_alive(self) -> None:
        for learner in self._learners:
            get_result(learner.__ray_ready__.remote(), "the learner", self._timeout_s)

    def start_update(self, indices: Sequence[int]) -> None:
        """Begin an update from groups that all learners have."""
        assert not self._update
        self._started = time.monotonic()
        self._update = [learner.update.remote(indices) for learner in self._learners]

    def finished_update(self) -> UpdateReport | None:
        """The report of the update under way, once all learners have finished.

        Raises:
            WorkerError: A learner failed, or did not finish in time.
        """
        if not self._update:
            return None
        # One that failed leaves the others waiting for it, so each is looked at as soon as it has answered.
        answered = [answer for answer in self._update if is_ready(answer)]
        reports = [get_result(answer, "the learner", self._timeout_s) for answer in answered]
        if len(reports) < len(self._update):
            if time.monotonic() - self._started > self._timeout_s:
                raise WorkerError(f"the learner: no answer within {self._timeout_s:g} s (cluster.update-timeout-s)")
            return None
        self._update = []
        report: UpdateReport = reports[0]
        return report

    def weights(self) -> ray.ObjectRef:
        """A reference to the present weights."""
        return self._learners[0].weights.remote()

    def state(self) -> Arrays:
        """The learner's state besides its weights; see `Learner.state`."""
        state: Arrays = get_result(self._learners[0].state.remote(), "the learner's state", self._timeout_s)
        return state

    def restore(self, version: Version, state: Arrays) -> None:
        """Put every learner where a checkpoint left one; see `Learner.restore`."""
        for answer in [learner.restore.remote(version, state) for learner in self._learners]:
            get_result(answer, "the learner", self._timeout_s)

    def kill(self) -> None:
        """End them."""
        for learner in self._learners:
            ray.kill(learner, no_restart=True)
