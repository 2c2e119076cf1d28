"""Contexts: the dataset an experiment draws from, and the endless order it is drawn in.

Source: RIPT-VLA Algorithm 1, lines 1 and 6.
"""

from collections.abc import Sequence

import numpy as np

from ript_envs.contract import Benchmark
from ript_ray.seeding import Purpose, seed_of
from ript_ray.types import Context


def draw_contexts(
    benchmark: Benchmark, tasks: Sequence[str], *, num_per_task: int, seed: int, purpose: Purpose
) -> tuple[Context, ...]:
    """Contexts of all tasks, task by task.

    Different purposes give disjoint sets, the same arguments the same set in every process.

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


class ContextStream:
    """An endless, seeded order over a set of contexts: each pass visits all of them in a fresh order.

    Position is the only state, and it belongs to the caller: `at(i)` gives the same context whenever
    and wherever it is asked, so a resumed run or a lost group continues exactly.
    """

    def __init__(self, contexts: Sequence[Context], seed: int):
        """Order `contexts` by `seed`.

        Raises:
            ValueError: There is no context.
        """
        if not contexts:
            raise ValueError("a context stream needs at least one context")
        self._contexts = tuple(contexts)
        self._seed = seed

    def at(self, index: int) -> Context:
        """The context of group `index`, from 0."""
        epoch, position = divmod(index, len(self._contexts))
        generator = np.random.default_rng(seed_of(self._seed, Purpose.CONTEXT_ORDER, epoch))
        return self._contexts[generator.permutation(len(self._contexts))[position]]
