"""How much sooner is a group rolled out if its environments step in processes, and if an actor has two in turns?

Question: how long does a rollout worker take for a group of K rollouts, with `cluster.env_processes` at 0 and above,
    and with `cluster.groups_per_actor` at 1 and 2?
Method: a real worker, its threads and its processes. Its policy sleeps for as long as a query would take on a GPU, or
    not at all. Two kinds of environments. Sleeping: a step sleeps for `step_s`, which stands in for a simulator with a
    core of its own; chunks of one action, so that every step waits for the slowest. LIBERO: the real simulator, without
    cameras, on the cores of this machine, in chunks of eight. Rollouts are the same in every row of a table; first
    groups build the environments and are not measured.
Expected: sleeping, 0.9 of K with K processes; and where a query takes as long as a step, nearly twice that with two
    groups in turns. LIBERO, what the cores give: nearly 2 with two processes on two cores that nothing else needs; with
    two groups, the time of the queries is saved.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from ript_ray.rl.hosting import Hosting
from ript_ray.rl.rollout_worker import RolloutWorker
from ript_ray.runtime.host import num_cpus
from ript_ray.types import Arrays, Context, RolloutRequest


@dataclass(frozen=True)
class Options:
    """Sizes of the benchmark.

    Attributes:
        group_size: Rollouts of a group, K.
        processes: Numbers of processes to compare with none; the last one also with two groups in turns.
        queries_s: Durations of a policy query, in seconds.
        step_s: Duration of a step of the sleeping environments, in seconds.
        num_steps: Environment steps of an episode.
        repeats: Rounds per row, of which the shortest is shown: others may need the cores.
        libero: Also measure LIBERO, with as many processes as cores.
    """

    group_size: int = 8
    processes: tuple[int, ...] = (2, 4, 8)
    queries_s: tuple[float, ...] = (0.0, 0.05)
    step_s: float = 0.05
    num_steps: int = 24
    repeats: int = 3
    libero: bool = True


@dataclass(frozen=True)
class RandomChunks:
    """Acts at random, after a sleep.

    Attributes:
        chunk_length: Actions per query.
        action_dim: Dimensions of an action.
        query_s: Duration of the sleep, in seconds.
    """

    chunk_length: int
    action_dim: int
    query_s: float

    def act(
        self, observations: Arrays, instructions: Sequence[str], generators: Sequence[np.random.Generator]
    ) -> Decisions:
        """Draw each rollout's chunk from its own generator."""
        time.sleep(self.query_s)
        shape = (self.chunk_length, self.action_dim)
        actions_BCA = np.stack([generator.uniform(-1, 1, shape) for generator in generators], dtype=np.float32)
        zeros = np.zeros((len(generators), 1), np.float32)
        return Decisions(actions_BCA, {}, zeros, np.ones_like(zeros, bool))


def make_sleeping(step_s: float, task: str) -> Environment:
    """Build an environment whose steps sleep; it is never solved."""
    return TimedEnvironment(step_s=step_s, num_steps=0, is_busy=False)


def seconds_per_group(
    options: Options, policy: RandomChunks, make: Callable[[str], Environment], hosting: Hosting
) -> float:
    """Return the shortest time of a round in which every thread rolls out a group, by their number, in seconds."""
    benchmark = Libero(suite="libero_object")
    task = benchmark.tasks[0]
    context = Context(task, "pick", tuple(benchmark.evaluation_states(task)[0]))
    seeds = tuple((member,) for member in range(options.group_size))
    request = RolloutRequest(0, (context,) * options.group_size, seeds, keep_record=False)
    worker = RolloutWorker(lambda: cast(Policy, policy), make, options.num_steps, hosting)
    seconds = []
    with ThreadPoolExecutor(hosting.num_groups) as threads, closing(worker):
        for _ in range(options.repeats + 1):
            started = time.perf_counter()
            list(threads.map(worker.roll, [request] * hosting.num_groups))
            seconds.append(time.perf_counter() - started)
    return min(seconds[1:]) / hosting.num_groups  # the first round builds the environments


def rows_of(
    options: Options, policy: RandomChunks, make: Callable[[str], Environment], processes: Sequence[int]
) -> Iterator[list[str]]:
    """Measure one kind of environment with one policy."""
    alone = seconds_per_group(options, policy, make, Hosting())
    yield ["none", "1", f"{alone:.2f}", ""]
    for number, groups in [*((number, 1) for number in processes), (processes[-1], 2)]:
        seconds = seconds_per_group(options, policy, make, Hosting(num_processes=number, num_groups=groups))
        yield [str(number), str(groups), f"{seconds:.2f}", f"{alone / seconds:.2f}"]


def main(options: Options) -> None:
    """Measure and print."""
    sizes = f"{options.group_size} rollouts of {options.num_steps} steps, {num_cpus()} cores"
    columns = ["processes", "groups in turns", "s per group", "times as fast"]
    for query_s in options.queries_s:
        rows = rows_of(options, RandomChunks(1, 1, query_s), partial(make_sleeping, options.step_s), options.processes)
        print_table(f"sleeping, {query_s:g} s per query: {sizes}", columns, rows)
    for query_s in options.queries_s if options.libero else ():
        rows = rows_of(options, RandomChunks(8, 7, query_s), Libero(suite="libero_object").make, (num_cpus(),))
        print_table(f"LIBERO, {query_s:g} s per query: {sizes}", columns, rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
