"""Batched rollouts of one request with one policy copy. No Ray."""

import contextlib
import ctypes
import gc
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import Environment, Observation
from ript_ray.policies.base import Decisions, DeterministicPolicy, Policy
from ript_ray.rl.hosting import MAX_ENVIRONMENTS
from ript_ray.rl.simulation import LocalSimulation, Simulation
from ript_ray.types import Context, Group, Rollout, RolloutRequest, Version

Pooled = TypeVar("Pooled", bound=Environment | Simulation)

OnAction = Callable[[int, NDArray[np.float32]], None]
"""Takes the index of an episode in its request, and an action (A,) that it has executed."""

Turn = Callable[[], contextlib.AbstractContextManager[None]]
"""Entered for each policy call; may wait for one of another request, or raise `RolloutCancelledError`."""

logger = logging.getLogger(__name__)


class RolloutCancelledError(Exception):
    """A request was cancelled while it was running. Its environments stay usable: the next episode resets them."""


class EnvironmentPool(Generic[Pooled]):
    """Environments per task, built on first use and reused; bounded, unless one request needs more.

    Reuse changes no result: a reset environment behaves like a new one.
    """

    def __init__(
        self,
        make: Callable[[str], Pooled],
        max_environments: int = MAX_ENVIRONMENTS,
        max_tasks: int | None = None,
    ):
        """Begin with none.

        Args:
            make: Builds the environment of a task.
            max_environments: Environments that are kept open.
            max_tasks: Tasks whose environments are kept open; None for any number.
        """
        self._make = make
        self._max_environments = max_environments
        self._max_tasks = max_tasks
        self._by_task: OrderedDict[str, list[Pooled]] = OrderedDict()  # least recently used first

    def take(self, tasks: Sequence[str]) -> list[Pooled]:
        """Return a distinct environment per entry of `tasks`; the pool keeps ownership.

        Above the bound, environments that this request does not use are closed, least recently used task first.
        """
        wanted = Counter(tasks)
        for task in wanted:
            self._by_task.setdefault(task, [])
            self._by_task.move_to_end(task)
        self._close_surplus(wanted)  # before building, so that the old and the new ones never add up
        for task, count in wanted.items():
            built = self._by_task[task]
            built.extend(self._make(task) for _ in range(count - len(built)))
        unused = {task: iter(self._by_task[task]) for task in wanted}
        return [next(unused[task]) for task in tasks]

    def close(self) -> None:
        """Close all environments, even if closing one fails; the next request builds new ones."""
        environments = [environment for built in self._by_task.values() for environment in built]
        self._by_task.clear()
        with contextlib.ExitStack() as stack:
            for environment in environments:
                stack.callback(environment.close)

    def _close_surplus(self, wanted: Counter[str]) -> None:
        num_open = sum(max(len(built), wanted[task]) for task, built in self._by_task.items())
        num_surplus = 0 if self._max_tasks is None else max(0, len(self._by_task) - self._max_tasks)
        oldest = list(self._by_task)[:num_surplus]
        if num_open <= self._max_environments and not oldest:
            return
        for task, built in list(self._by_task.items()):
            while (num_open > self._max_environments or task in oldest) and len(built) > wanted[task]:
                num_open -= 1
                try:
                    built.pop().close()
                except Exception as error:  # boundary: no later episode depends on it
                    logger.warning(
                        "an environment of task %s was not closed: %s: %s", task, type(error).__name__, error
                    )
            if not built and not wanted[task]:
                del self._by_task[task]
        _release_memory()


def _release_memory() -> None:
    """Return the memory of closed environments to the system.

    A simulator is often a reference cycle, which is freed at Python's leisure; and the C library keeps what was freed,
    in pieces. Without this, an actor grows by 360 MB with every task of MetaWorld (`experiments/benchmarks/memory.py`).
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


class _Episode:
    """A running episode."""

    def __init__(
        self, row: int, context: Context, environment: Environment | Simulation, generator: np.random.Generator
    ):
        self.row = row
        self.context = context
        self.simulation = environment if isinstance(environment, Simulation) else LocalSimulation(environment)
        self.generator = generator
        self.success = False
        self.num_steps = 0
        self.observation: Observation | None = None
        self.decisions: list[tuple[Decisions, int]] = []
        self.simulation.begin(context.initial_state)

    def execute(self, actions_CA: NDArray[np.float32], max_steps: int) -> None:
        """Begin to execute a chunk of actions, until success or the horizon."""
        num_left = max_steps - self.num_steps
        self.simulation.execute(actions_CA[:num_left], is_last=len(actions_CA) >= num_left)

    def wait(self) -> int:
        """Wait for what was begun; returns the number of actions that were executed."""
        outcome = self.simulation.wait()
        self.success = outcome.success
        self.num_steps += outcome.num_steps
        self.observation = outcome.observation
        return outcome.num_steps

    def finish(self) -> Rollout:
        if not self.decisions:
            return Rollout(self.success, self.num_steps)
        names = self.decisions[0][0].record
        return Rollout(
            success=self.success,
            num_steps=self.num_steps,
            record={name: np.stack([made.record[name][row] for made, row in self.decisions]) for name in names},
            log_probs_TU=np.stack([made.log_probs_BU[row] for made, row in self.decisions]),
            valid_TU=np.stack([made.valid_BU[row] for made, row in self.decisions]),
        )


def roll_out(
    request: RolloutRequest,
    policy: Policy,
    pool: EnvironmentPool[Pooled],
    *,
    max_steps: int,
    version: Version,
    on_action: OnAction | None = None,
    turn: Turn = contextlib.nullcontext,
) -> Group:
    """Run the episodes of a request as one batch (Algorithm 1, lines 7 and 8).

    One policy call serves all unfinished episodes; finished ones are neither stepped, observed nor queried again.
    Episodes are never truncated because others of the group have finished: successful episodes end early, so
    truncation would bias the leave-one-out baseline.

    Args:
        request: Contexts and seeds, one per episode.
        policy: The sampling policy.
        pool: Provides the environments.
        max_steps: Episode horizon, in environment steps.
        version: Version of the policy's weights, stored in the group.
        on_action: Called for each action that was executed, for whoever wants to see them.
        turn: Entered for each policy call.

    Raises:
        RolloutCancelledError: `turn` raised it.
    """
    assert not (request.deterministic and request.keep_record), "what has no probability cannot be trained"
    active = episodes = _begin(request, pool)
    while active:
        observed = [episode.observation or {} for episode in active]
        observations = {name: np.stack([observation[name] for observation in observed]) for name in observed[0]}
        instructions = [episode.context.instruction for episode in active]
        with turn():
            if request.deterministic:
                assert isinstance(policy, DeterministicPolicy)
                actions_BCA = policy.act_deterministically(observations, instructions)
            else:
                decisions = policy.act(observations, instructions, [episode.generator for episode in active])
                actions_BCA = decisions.actions_BCA
        for row, episode in enumerate(active):
            if request.keep_record:
                episode.decisions.append((decisions, row))
            episode.execute(actions_BCA[row], max_steps)
        for episode, actions_CA in zip(active, actions_BCA, strict=True):
            executed_CA = actions_CA[: episode.wait()]
            if on_action is not None:
                for action in executed_CA:
                    on_action(episode.row, action)
        active = [episode for episode in active if episode.observation is not None]
    return Group(request.index, version, tuple(episode.finish() for episode in episodes))


def _begin(request: RolloutRequest, pool: EnvironmentPool[Pooled]) -> list[_Episode]:
    environments = pool.take([context.task for context in request.contexts])
    episodes = [
        _Episode(row, context, environment, np.random.default_rng(seed))
        for row, (context, environment, seed) in enumerate(
            zip(request.contexts, environments, request.seeds, strict=True)
        )
    ]
    for episode in episodes:
        episode.wait()
    return episodes
