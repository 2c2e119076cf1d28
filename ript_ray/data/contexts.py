"""The context dataset of an experiment: drawn from the seed, or read from files.

Source: RIPT-VLA Algorithm 1, lines 1 and 6.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ript_envs.contract import Benchmark
from ript_ray.config.experiment import Experiment
from ript_ray.data.hdf5 import find_file, read_initial_states
from ript_ray.errors import ConfigError
from ript_ray.seeding import Purpose, seed_of, text_code
from ript_ray.types import Context


def draw_contexts(
    benchmark: Benchmark, tasks: Sequence[str], *, num_per_task: int, seed: int, purpose: Purpose
) -> tuple[Context, ...]:
    """Draw contexts of all tasks, task by task.

    Different purposes give disjoint sets; the same arguments give the same set in every process.

    Raises:
        ValueError: The benchmark has no such task.
    """
    return tuple(
        Context(
            task=task,
            instruction=benchmark.instruction(task),
            initial_state=tuple(benchmark.draw_initial_state(task, seed_of(seed, purpose, index)).tolist()),
        )
        for task in tasks
        for index in range(num_per_task)
    )


def with_noise(benchmark: Benchmark, contexts: Sequence[Context], *, std_m: float, seed: int) -> tuple[Context, ...]:
    """Return the contexts with randomly perturbed object positions, as when scenes are set up by hand.

    Args:
        benchmark: The benchmark of the tasks.
        contexts: The contexts to perturb.
        std_m: Standard deviation along each horizontal axis, in metres, at least 0. Source: RIPT-VLA, appendix A.4
            (up to 0.175; 0.025 is the spread of LIBERO-LONG's own initial states).
        seed: The experiment's seed.

    Raises:
        ConfigError: No valid perturbation of a context was found.
    """
    if std_m == 0.0:
        return tuple(contexts)
    moved = []
    for index, context in enumerate(contexts):
        noise = seed_of(seed, Purpose.CONTEXT_NOISE, text_code(context.task), index)
        try:
            state = benchmark.move_objects(context.task, np.array(context.initial_state), std_m=std_m, seed=noise)
        except ValueError as error:
            raise ConfigError(f"noise on contexts: {error}") from None
        moved.append(Context(context.task, context.instruction, tuple(state.tolist())))
    return tuple(moved)


def read_contexts(path: Path, benchmark: Benchmark, tasks: Sequence[str], *, num_per_task: int) -> tuple[Context, ...]:
    """Read the first contexts of each task from a JSON file: a list of objects with `task` and `initial_state`.

    Raises:
        ConfigError: The file is missing or invalid, or has too few contexts of a task.
    """
    by_task: dict[str, list[Context]] = {task: [] for task in tasks}
    try:
        for row in json.loads(path.read_text()):
            state = tuple(float(entry) for entry in row["initial_state"])
            if row["task"] in by_task:
                by_task[row["task"]].append(Context(row["task"], benchmark.instruction(row["task"]), state))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path} is not a valid context file (a list of objects with task and initial_state): {error!r}"
        ) from None
    for task, contexts in by_task.items():
        if len(contexts) < num_per_task:
            raise ConfigError(
                f"{path} contains {len(contexts)} contexts of {task}, fewer than the {num_per_task} needed"
            )
    return tuple(context for contexts in by_task.values() for context in contexts[:num_per_task])


def collect_contexts(
    benchmark: Benchmark,
    tasks: Sequence[str],
    *,
    source: Path | None,
    num_per_task: int,
    noise_m: float,
    seed: int,
) -> tuple[Context, ...]:
    """Return the training contexts of all tasks, task by task.

    Args:
        benchmark: The benchmark of the tasks.
        tasks: The tasks.
        source: A folder of demonstration files (the first state of each demonstration) or a JSON file of contexts;
            None to draw from the seed.
        num_per_task: Contexts per task, the first ones of the source, at least 1.
        noise_m: Standard deviation of the noise on initial object positions, in metres, at least 0.
        seed: The experiment's seed.

    Raises:
        RiptError: The source is missing, corrupt, or has too few contexts, or no valid perturbation was found.
    """
    if source is None:
        contexts = draw_contexts(
            benchmark, tasks, num_per_task=num_per_task, seed=seed, purpose=Purpose.TRAINING_CONTEXTS
        )
    elif source.is_dir():
        contexts = tuple(
            Context(task, benchmark.instruction(task), tuple(state.tolist()))
            for task in tasks
            for state in read_initial_states(find_file(source, task), num_per_task)
        )
    else:
        contexts = read_contexts(source, benchmark, tasks, num_per_task=num_per_task)
    return with_noise(benchmark, contexts, std_m=noise_m, seed=seed)


def held_out_contexts(experiment: Experiment) -> tuple[Context, ...]:
    """Return the contexts that an experiment is evaluated on; training never draws them."""
    return draw_contexts(
        experiment.benchmark,
        experiment.tasks,
        num_per_task=experiment.evaluation.contexts_per_task,
        seed=experiment.seed,
        purpose=Purpose.HELD_OUT_CONTEXTS,
    )


def training_contexts(experiment: Experiment) -> tuple[Context, ...]:
    """Return the context dataset of RIPT.

    Raises:
        RiptError: The source of contexts is missing, corrupt, or has too few.
    """
    sampling = experiment.sampling
    return collect_contexts(
        experiment.benchmark,
        experiment.tasks,
        source=sampling.context_source,
        num_per_task=sampling.contexts_per_task,
        noise_m=sampling.context_noise_m,
        seed=experiment.seed,
    )
