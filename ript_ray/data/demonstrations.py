"""Demonstrations, and scripted experts that perform them."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import Benchmark, Environment, Observation, ScriptedExpert, StatefulEnvironment
from ript_ray.checks import require
from ript_ray.config.data import Demonstrations
from ript_ray.errors import RiptError
from ript_ray.policies.supervised import Rows
from ript_ray.seeding import Purpose, seed_of, text_code
from ript_ray.types import Arrays


@dataclass(frozen=True)
class Demonstration:
    """One episode of an expert: a success, unless failures were kept on purpose.

    Attributes:
        instruction: The language instruction.
        observations: T rows per sensor: the observation before each action.
        actions_TA: The actions, float32 in [-1, 1].
        initial_state: Initial state, in the benchmark's own format; None if it was not recorded.
    """

    instruction: str
    observations: Mapping[str, Rows]
    actions_TA: NDArray[np.float32]
    initial_state: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class ExpertEpisode:
    """The result of one attempt of an expert.

    Attributes:
        initial_state: Initial state, in the benchmark's own format.
        observations: T rows per sensor: the observation before each action; T + 1 rows if the final one is included.
        actions_TA: The executed actions, noise included, float32 in [-1, 1].
        success: Whether the last action solved the task.
        later_states: The simulator's state before each action but the first, if the environment tells it.
    """

    initial_state: NDArray[np.float64]
    observations: Arrays
    actions_TA: NDArray[np.float32]
    success: bool
    later_states: tuple[NDArray[np.float64], ...] = ()


@dataclass(frozen=True)
class Attempt:
    """All inputs of an attempt: equal attempts give the same episode, bit for bit, in every process.

    Attributes:
        task: The task.
        index: Number of the attempt at this task, from 0.
        action_noise: See `Demonstrations`.
        max_steps: Length limit, in environment steps.
        seed: Seed of the experiment or of the dataset.
    """

    task: str
    index: int
    action_noise: float
    max_steps: int
    seed: int


class FailureLimit:
    """Limit on consecutive failures of a task's expert."""

    def __init__(self, task: str, *, max_attempts: int, max_steps: int):
        self._task = task
        self._max_attempts = max_attempts
        self._max_steps = max_steps
        self._streak = 0

    def count(self, success: bool) -> None:
        """Record the outcome of an attempt.

        Raises:
            RiptError: `max_attempts` in a row have failed.
        """
        self._streak = 0 if success else self._streak + 1
        if self._streak == self._max_attempts:
            raise RiptError(
                f"the expert of {self._task} failed {self._streak} times in a row within {self._max_steps} steps; "
                "raise max-steps or lower the action noise"
            )


def record_demonstrations(
    benchmark: Benchmark, task: str, *, settings: Demonstrations, max_steps: int, seed: int
) -> list[Demonstration]:
    """Record the successes of a task that are needed for training and as held-out demonstrations.

    Raises:
        RiptError: There is no expert, or it failed `settings.max_attempts` times in a row.
    """
    environment = benchmark.make(task)
    limit = FailureLimit(task, max_attempts=settings.max_attempts, max_steps=max_steps)
    recorded: list[Demonstration] = []
    for index in itertools.count():
        if len(recorded) == settings.num_per_task + settings.num_held_out:
            break
        episode = run_expert(benchmark, environment, Attempt(task, index, settings.action_noise, max_steps, seed))
        limit.count(episode.success)
        if episode.success:
            recorded.append(demonstration_of(benchmark.instruction(task), episode))
    environment.close()
    return recorded


def run_expert(
    benchmark: Benchmark, environment: Environment, attempt: Attempt, *, include_final: bool = False
) -> ExpertEpisode:
    """Run one attempt of the scripted expert.

    Args:
        benchmark: The benchmark of the task.
        environment: An environment of the task.
        attempt: The attempt.
        include_final: Whether to include the observation after the last action.

    Raises:
        RiptError: The environment has no scripted expert.
    """
    expert = require_expert(benchmark, environment, attempt.task)
    context_seed = seed_of(attempt.seed, Purpose.DEMONSTRATION_CONTEXTS, attempt.index)
    initial_state = benchmark.draw_initial_state(attempt.task, context_seed)
    environment.reset(initial_state)
    noise = np.random.default_rng(
        seed_of(attempt.seed, Purpose.DEMONSTRATION_NOISE, text_code(attempt.task), attempt.index)
    )
    observations: list[Observation] = []
    actions: list[NDArray[np.float32]] = []
    states: list[NDArray[np.float64]] = []
    success = False
    while not success and len(actions) < attempt.max_steps:
        observations.append(environment.observe())
        if actions and isinstance(environment, StatefulEnvironment):
            states.append(environment.simulator_state())
        action = expert.expert_action()
        noisy = action + attempt.action_noise * noise.standard_normal(action.shape)
        actions.append(np.clip(noisy, -1, 1).astype(np.float32))
        success = environment.step(actions[-1])
    if include_final:
        observations.append(environment.observe())
    stacked = {name: np.stack([observation[name] for observation in observations]) for name in observations[0]}
    return ExpertEpisode(initial_state, stacked, np.stack(actions), success, tuple(states))


def require_scripted(benchmark: Benchmark, tasks: Sequence[str]) -> None:
    """Check that the benchmark's scripted expert can do all tasks.

    Raises:
        ConfigError: It cannot; the message names the tasks that it can do.
    """
    without = [task for task in tasks if task not in benchmark.tasks_with_expert]
    require(
        not without,
        f"task: {benchmark.spec.name} has no scripted expert for {', '.join(without)}; it has one for "
        f"{', '.join(benchmark.tasks_with_expert) or 'none'}",
    )


def require_expert(benchmark: Benchmark, environment: Environment, task: str) -> ScriptedExpert:
    """Return the environment of a task as one with a scripted expert.

    Raises:
        RiptError: It has none.
    """
    if not isinstance(environment, ScriptedExpert):
        raise RiptError(
            f"{benchmark.spec.name} has no scripted expert for {task}: demonstrations cannot be recorded, only read "
            "from files (demos.folder)"
        )
    return environment


def demonstration_of(instruction: str, episode: ExpertEpisode) -> Demonstration:
    """Return an episode as a demonstration: one observation per action."""
    num_actions = len(episode.actions_TA)
    observations = {name: rows[:num_actions] for name, rows in episode.observations.items()}
    return Demonstration(instruction, observations, episode.actions_TA, episode.initial_state)
