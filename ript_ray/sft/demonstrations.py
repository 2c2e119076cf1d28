"""Scripted expert demonstrations, in memory, and the windows the supervised stages train on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import Benchmark, Environment
from ript_ray.config import Demonstrations
from ript_ray.errors import RiptError
from ript_ray.seeding import Purpose, seed_of, text_code
from ript_ray.types import Arrays


@dataclass(frozen=True)
class Demonstration:
    """One successful episode of an expert.

    Attributes:
        instruction: The task in words.
        observations: T rows per sensor: what the expert saw before each action.
        actions_TA: The actions it took, float32 in [-1, 1].
    """

    instruction: str
    observations: Arrays
    actions_TA: NDArray[np.float32]


@dataclass(frozen=True)
class Windows:
    """Every window of every demonstration: an observation and the chunk of actions that followed it.

    Attributes:
        instructions: W strings.
        observations: W rows per sensor.
        chunks_WCA: float32; a chunk that reaches past the end repeats the last action.
    """

    instructions: tuple[str, ...]
    observations: Arrays
    chunks_WCA: NDArray[np.float32]


def record_demonstrations(
    benchmark: Benchmark, tasks: Sequence[str], *, settings: Demonstrations, max_steps: int, seed: int
) -> tuple[Demonstration, ...]:
    """Record `settings.num_per_task` successes per task.

    Raises:
        RiptError: An expert failed `settings.max_attempts` times in a row.
    """
    return tuple(
        demonstration
        for task in tasks
        for demonstration in _record_task(benchmark, task, settings=settings, max_steps=max_steps, seed=seed)
    )


def _record_task(
    benchmark: Benchmark, task: str, *, settings: Demonstrations, max_steps: int, seed: int
) -> list[Demonstration]:
    environment = benchmark.make(task)
    recorded: list[Demonstration] = []
    attempt = failures = 0
    while len(recorded) < settings.num_per_task:
        initial_state = benchmark.draw_initial_state(task, seed_of(seed, Purpose.DEMONSTRATION_CONTEXTS, attempt))
        environment.reset(initial_state)
        noise = np.random.default_rng(seed_of(seed, Purpose.DEMONSTRATION_NOISE, text_code(task), attempt))
        episode = _run_expert(environment, noise, action_noise=settings.action_noise, max_steps=max_steps)
        attempt += 1
        if episode is None:
            failures += 1
            if failures == settings.max_attempts:
                raise RiptError(
                    f"the expert of {task} failed {failures} times in a row within {max_steps} steps; "
                    "raise max-steps or lower demos.action-noise"
                )
            continue
        failures = 0
        recorded.append(Demonstration(benchmark.instruction(task), *episode))
    environment.close()
    return recorded


def _run_expert(
    environment: Environment, noise: np.random.Generator, *, action_noise: float, max_steps: int
) -> tuple[Arrays, NDArray[np.float32]] | None:
    observations, actions = [], []
    for _ in range(max_steps):
        observation = environment.observe()
        action = environment.expert_action()
        action = np.clip(action + action_noise * noise.standard_normal(action.shape), -1, 1).astype(np.float32)
        observations.append(observation)
        actions.append(action)
        if environment.step(action):
            stacked = {name: np.stack([seen[name] for seen in observations]) for name in observation}
            return stacked, np.stack(actions)
    return None


def make_windows(demonstrations: Sequence[Demonstration], chunk_length: int) -> Windows:
    """All windows of `chunk_length` actions, one starting at every step."""
    chunks, instructions = [], []
    for demonstration in demonstrations:
        actions_TA = demonstration.actions_TA
        padded = np.concatenate([actions_TA, np.repeat(actions_TA[-1:], chunk_length - 1, axis=0)])
        chunks += [padded[start : start + chunk_length] for start in range(len(actions_TA))]
        instructions += [demonstration.instruction] * len(actions_TA)
    names = demonstrations[0].observations
    return Windows(
        instructions=tuple(instructions),
        observations={name: np.concatenate([d.observations[name] for d in demonstrations]) for name in names},
        chunks_WCA=np.stack(chunks),
    )
