"""How much sooner is a group rolled out if its environments step in processes of their own?

Question: how long does a rollout worker take for a group of K rollouts, with `cluster.env_processes` at 0 and above?
Method: a real worker and its processes, in two cases. Sleeping: environments that sleep for `step_s` a step, which
    stand in for simulators with a core each; chunks of one action, so that every step waits for the slowest. LIBERO:
    the real simulator, without cameras, on the cores of this machine, in chunks of eight. Rollouts of both are the same
    whatever the number of processes; a first group of each builds the environments and is not measured.
Expected: sleeping, 0.9 of K with K processes. LIBERO, what the cores give: nearly 2 with two processes on two cores
    that nothing else needs.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import tyro

from experiments.benchmarks.timed import TimedEnvironment, print_table
from ript_envs.contract import Environment
from ript_envs.libero.benchmark import Libero
from ript_ray.policies.base import Decisions, Policy
from ript_ray.rl.rollout_worker import RolloutWorker
from ript_ray.runtime.host import num_cpus
from ript_ray.types import Arrays, Context, RolloutRequest


@dataclass(frozen=True)
class Options:
    """Sizes of the benchmark.

    Attributes:
        group_size: Rollouts of a group, K.
        processes: Numbers of processes to compare with none.
        step_s: Duration of a step of the sleeping environments, in seconds.
        num_steps: Environment steps of an episode.
        repeats: Groups per case, of which the shortest is shown: others may need the cores.
        libero: Also measure LIBERO.
    """

    group_size: int = 8
    processes: tuple[int, ...] = (2, 4, 8)
    step_s: float = 0.05
    num_steps: int = 24
    repeats: int = 3
    libero: bool = True


class RandomChunks:
    """Acts at random, at once: what takes time is the environments."""

    def __init__(self, chunk_length: int, action_dim: int):
        self._shape = (chunk_length, action_dim)

    def act(
        self, observations: Arrays, instructions: Sequence[str], generators: Sequence[np.random.Generator]
    ) -> Decisions:
        """Draw each rollout's chunk from its own generator."""
        actions_BCA = np.stack([generator.uniform(-1, 1, self._shape) for generator in generators], dtype=np.float32)
        zeros = np.zeros((len(generators), 1), np.float32)
        return Decisions(actions_BCA, {}, zeros, np.ones_like(zeros, bool))


def make_sleeping(step_s: float, task: str) -> Environment:
    """Build an environment whose steps sleep; it is never solved."""
    return TimedEnvironment(step_s=step_s, num_steps=0, is_busy=False)


def shortest_s(options: Options, policy: RandomChunks, make: Callable[[str], Environment], num_processes: int) -> float:
    """Return the shortest time of a group, in seconds."""
    benchmark = Libero(suite="libero_object")
    task = benchmark.tasks[0]
    context = Context(task, "pick", tuple(benchmark.evaluation_states(task)[0]))
    seeds = tuple((member,) for member in range(options.group_size))
    request = RolloutRequest(0, (context,) * options.group_size, seeds, keep_record=False)
    seconds = []
    with closing(
        RolloutWorker(lambda: cast(Policy, policy), make, options.num_steps, env_processes=num_processes)
    ) as worker:
        for _ in range(options.repeats + 1):
            started = time.perf_counter()
            worker.roll(request)
            seconds.append(time.perf_counter() - started)
    return min(seconds[1:])  # the first one builds the environments


def rows_of(
    name: str, options: Options, policy: RandomChunks, make: Callable[[str], Environment]
) -> Iterator[list[str]]:
    """Measure one kind of environment."""
    alone = shortest_s(options, policy, make, 0)
    yield [name, "none", f"{alone:.2f}", ""]
    for number in options.processes:
        seconds = shortest_s(options, policy, make, number)
        yield [name, str(number), f"{seconds:.2f}", f"{alone / seconds:.2f}"]


def main(options: Options) -> None:
    """Measure and print."""
    rows = [*rows_of("sleeping", options, RandomChunks(1, 1), partial(make_sleeping, options.step_s))]
    if options.libero:
        rows += rows_of("LIBERO", options, RandomChunks(8, 7), Libero(suite="libero_object").make)
    title = f"{options.group_size} rollouts of {options.num_steps} steps, {num_cpus()} cores"
    print_table(title, ["environments", "processes", "s", "times as fast"], rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
