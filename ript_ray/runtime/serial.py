"""The whole system in one process: the same components as on Ray, one request at a time."""

from collections import deque
from collections.abc import Callable, Sequence

from ript_ray.checks import require
from ript_ray.rl.hosting import Hosting
from ript_ray.rl.learner import Learner, UpdateReport
from ript_ray.rl.parts import join_summaries, split
from ript_ray.rl.protocols import Components, DispatchCounts, Rerun, RuntimeUsage
from ript_ray.rl.rollout_worker import RolloutWorker
from ript_ray.runtime.heartbeat import with_heartbeat
from ript_ray.runtime.usage import total
from ript_ray.types import Arrays, Group, GroupSummary, RolloutRequest, Version, Weights


class SerialRuntime:
    """See `Runtime`."""

    num_actors = 1
    num_alive = 1

    def __init__(
        self,
        parts: Components,
        hosting: Hosting = Hosting(),  # noqa: B008 (frozen)
        *,
        actor_device: str = "cpu",
        learner_device: str = "cpu",
        with_learner: bool = True,
    ):
        """Build one worker, and the learner unless only requests are to be run, each on its device.

        Raises:
            ConfigError: The experiment has several learner processes.
        """
        if with_learner:
            self.require_fit(parts.num_learners)
        self._worker = RolloutWorker(
            parts.build_policy, parts.make_environment, parts.max_steps, hosting, device=actor_device
        )
        self._optional_learner: Learner | None = None
        if with_learner:
            self._optional_learner = Learner(
                parts.build_policy,
                parts.ppo,
                seed=parts.seed,
                num_threads=parts.learner_threads,
                parameter_groups=parts.parameter_groups,
                keep_group=parts.keep_group,
                device=learner_device,
            )
        self._requests: deque[RolloutRequest] = deque()
        self._finished: dict[int, list[Group]] = {}
        self._batch: Sequence[int] | None = None
        self._num_dispatched = 0

    @staticmethod
    def require_fit(num_learners: int) -> None:
        """Check that learners of that number run in one process.

        Raises:
            ConfigError: They do not.
        """
        require(num_learners == 1, f"num-learners is {num_learners}; in one process it must be 1")

    @property
    def dispatch_counts(self) -> DispatchCounts:
        return DispatchCounts(self._num_dispatched)

    @property
    def usage(self) -> RuntimeUsage:
        return total(self._worker.usage, {})

    def launch(self, request: RolloutRequest) -> None:
        self._requests.append(request)

    def run_ahead(self, request_of: Callable[[int], RolloutRequest] | None, first_index: int) -> None:
        pass  # nothing idles here

    def next_event(self) -> GroupSummary | UpdateReport:
        if self._batch is not None:
            batch, self._batch = self._batch, None
            return self._learner.update(batch)
        parts = [self._worker.roll(part) for part in split(self._requests.popleft())]
        self._num_dispatched += len(parts)
        summary = join_summaries([summary for summary, _ in parts])
        self._finished[summary.index] = [group for _, group in parts]
        return summary

    def roll_out(self, requests: Sequence[RolloutRequest]) -> list[GroupSummary]:
        batches = with_heartbeat(requests, "evaluating, batches of rollouts", len(requests))
        return [self._worker.roll(request)[0] for request in batches]

    def send_to_learner(self, index: int) -> None:
        self._learner.receive(*self._finished.pop(index))

    def give(self, request: RolloutRequest, summary: GroupSummary, group: Group) -> None:
        self._learner.receive(group)

    def discard(self, index: int) -> None:
        del self._finished[index]

    def start_update(self, indices: Sequence[int]) -> Sequence[Rerun]:
        assert self._batch is None
        self._batch = indices
        return ()

    def broadcast(self) -> Weights:
        weights = self._learner.weights()
        self._worker.load(weights)
        return weights

    def learner_state(self) -> Arrays:
        return self._learner.state()

    def restore(self, version: Version, state: Arrays) -> None:
        self._learner.restore(version, state)

    def close(self) -> None:
        self._worker.close()

    @property
    def _learner(self) -> Learner:
        assert self._optional_learner, "this runtime was started without a learner"
        return self._optional_learner
