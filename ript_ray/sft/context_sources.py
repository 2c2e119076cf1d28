"""Where the contexts of an experiment come from: seeds, demonstrations, or a file.

Source: RIPT-VLA section 4.1: the context dataset is that of the demonstrations, without their actions.
"""

from collections.abc import Sequence
from pathlib import Path

from ript_envs.contract import Benchmark
from ript_ray.contexts import draw_contexts, read_contexts, with_noise
from ript_ray.seeding import Purpose
from ript_ray.sft.demonstration_files import find_file, read_initial_states
from ript_ray.types import Context


def collect_contexts(
    benchmark: Benchmark,
    tasks: Sequence[str],
    *,
    source: Path | None,
    num_per_task: int,
    noise_m: float,
    seed: int,
) -> tuple[Context, ...]:
    """The training contexts of all tasks, task by task.

    Args:
        benchmark: Where the tasks come from.
        tasks: The tasks.
        source: A folder of demonstration files (the first state of each demonstration), a JSON file of contexts,
            or none: drawn from the seed.
        num_per_task: The first so many of each task, at least 1.
        noise_m: Standard deviation of the noise on initial object positions, in metres, at least 0.
        seed: The experiment's.

    Raises:
        RiptError: The source is missing, damaged, or has too few contexts, or the noise leaves no valid state.
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
