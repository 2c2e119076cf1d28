"""Demonstrations, and the scripted experts that give them."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import Benchmark, Environment, Observation, ScriptedExpert
from ript_ray.config.data import Demonstrations
from ript_ray.errors import RiptError
from ript_ray.policies.supervised import Rows
from ript_ray.seeding import Purpose, seed_of, text_code
from ript_ray.types import Arrays


@dataclass(frozen=True)
class Demonstration:
    """One episode of an expert; a successful one, unless failures were kept on purpose.

    Attributes:
        instruction: The task in words.
        observations: T rows per sensor: what the expert saw before each action.
        actions_TA: The actions it took, float32 in [-1, 1].
    """

    instruction: str
    observations: Mapping[str, Rows]
    actions_TA: NDArray[np.float32]


@dataclass(frozen=True)
class ExpertEpisode:
    """One attempt of an expert, as it went.

    Attributes:
        initial_state: Where it began, in the benchmark's own form.
        observations: T rows per sensor: what was seen before each action; T + 1 where the end was wanted, too.
        actions_TA: The actions taken, noise included, float32 in [-1, 1].
        success: Whether the last of them solved the task.
    """

    initial_state: NDArray[np.float64]
    observations: Arrays
    actions_TA: NDArray[np.float32]
    success: bool


@dataclass(frozen=True)
class Attempt:
    """All that an attempt depends on: the same attempt is the same episode, bit for bit, in every process.

    Attributes:
        task: The task.
        index: Its number, from 0: the attempts of a task are numbered through.
        action_noise: See `Demonstrations`.
        max_steps: When it is given up, in environment steps.
        seed: The experiment's, or the data set's.
    """

    task: str
    index: int
    action_noise: float
    max_steps: int
    seed: int


class FailureLimit:
    """Gives up on a task whose expert keeps failing."""

    def __init__(self, task: str, *, max_attempts: int, max_steps: int):
        self._task = task
        self._max_attempts = max_attempts
        self._max_steps = max_steps
        self._streak = 0

    def count(self, success: bool) -> None:
        """Count an attempt.

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
    """Record as many successes of a task as are needed to train on and to hold out.

    Raises:
        RiptError: The expert failed `settings.max_attempts` times in a row, or there is none.
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
    """Let the expert try, in an environment of the attempt's task.

    Args:
        benchmark: Where the task comes from.
        environment: One of this task's.
        attempt: What to do.
        include_final: Whether the observation after the last action is wanted, too.

    Raises:
        RiptError: The environment has no scripted expert.
    """
    if not isinstance(environment, ScriptedExpert):
        raise RiptError(
            f"{benchmark.spec.name} has no scripted expert for {attempt.task}: name files with demos.folder"
        )
    context_seed = seed_of(attempt.seed, Purpose.DEMONSTRATION_CONTEXTS, attempt.index)
    initial_state = benchmark.draw_initial_state(attempt.task, context_seed)
    environment.reset(initial_state)
    noise = np.random.default_rng(
        seed_of(attempt.seed, Purpose.DEMONSTRATION_NOISE, text_code(attempt.task), attempt.index)
    )
    observations: list[Observation] = []
    actions: list[NDArray[np.float32]] = []
    success = False
    while not success and len(actions) < attempt.max_steps:
        observations.append(environment.observe())
        action = environment.expert_action()
        noisy = action + attempt.action_noise * noise.standard_normal(action.shape)
        actions.append(np.clip(noisy, -1, 1).astype(np.float32))
        success = environment.step(actions[-1])
    if include_final:
        observations.append(environment.observe())
    stacked = {name: np.stack([seen[name] for seen in observations]) for name in observations[0]}
    return ExpertEpisode(initial_state, stacked, np.stack(actions), success)


def demonstration_of(instruction: str, episode: ExpertEpisode) -> Demonstration:
    """What the supervised stages train on: an observation per action."""
    num_actions = len(episode.actions_TA)
    observations = {name: rows[:num_actions] for name, rows in episode.observations.items()}
    return Demonstration(instruction, observations, episode.actions_TA)
