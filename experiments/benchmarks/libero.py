"""How much faster and smaller are LIBERO's environments here than the stock ones?

Question: how much processor time does an environment step take without cameras, with two cameras that are read every
    8th step (as by a policy that executes 8 actions per query), and with scenery that is cheaper to draw? How long does
    it take to build an environment, how much memory does it need, and how many fit into 24 GiB? Does the memory of a
    rollout actor grow with the episodes and tasks that it has met?
Method: stock and ours take turns of 8 steps in one process, with the same random actions; medians of processor time, of
    all threads. The stock environment is LIBERO's `OffScreenRenderEnv`, which renders both cameras in every step;
    without cameras, their observables are off. Memory is the resident one of fresh processes. Growth is the highest
    memory in the second half of the episodes over that in the first, each of them over all tasks, in a pool of
    environments as an actor has it.
Expected: 3 times faster without cameras, 25 times with simplified meshes, small textures and fast rendering. At full
    fidelity 7 to 8 times with frames: one of them costs what a stock one does, and there are 8 times fewer. A further
    environment of a task takes a hundredth of a stock one. Growth below 5 %: an actor keeps the environments of 4
    tasks.
"""

import copy
import functools
import gc
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import mujoco
import numpy as np
import psutil
import tyro
from numpy.typing import NDArray
from rich.progress import track

from experiments.benchmarks.stock_libero import begin, bind, build_stock
from experiments.benchmarks.timed import print_table, spread
from ript_envs.contract import Environment
from ript_envs.libero.benchmark import Libero, Suite
from ript_envs.libero.environment import CAMERA_NAMES, NUM_SUBSTEPS, LiberoEnvironment
from ript_ray.rl.hosting import MAX_ENVIRONMENTS
from ript_ray.rl.rollout import EnvironmentPool

EXECUTED = 8
"""Actions per query of a policy."""

MACHINE_BYTES = 24 * 2**30

STOCK, STOCK_CAMERAS = "stock", "stock, two cameras"
PHYSICS = "25 simulator steps"
OURS, OURS_CAMERAS, OURS_CHEAP = "ours", "ours, two cameras read", "ours, cheap scenery"

AIMS = {OURS: (STOCK, "3"), OURS_CAMERAS: (STOCK_CAMERAS, "10"), OURS_CHEAP: (STOCK_CAMERAS, "25")}
"""What a kind is compared with, and how many times faster it should be."""

Actions = NDArray[np.float32]
"""(steps, 7)."""

Stepper = Callable[[Actions], object]

Result = TypeVar("Result")

Sizes = dict[str, tuple[float, float]]
"""Seconds and bytes of the first environment, a further one of its task, and one of a further task."""


@dataclass(frozen=True)
class Options:
    """Sizes of the benchmark.

    Attributes:
        suite: Suite whose first tasks are measured.
        blocks: Turns of 8 steps of each kind of environment.
        kinds: How many of the three kinds (stock, ours, ours with cheap scenery) memory is measured of.
        growth_suite: Suite of the episodes that memory may grow by.
        growth_tasks: Its first tasks.
        episodes: Of all these tasks together, half of them before a task is met again.
        num_steps: Environment steps of an episode.
    """

    suite: Suite = "libero_object"
    blocks: int = 15
    kinds: int = 3
    growth_suite: Suite = "libero_90"
    growth_tasks: int = 20
    episodes: int = 200
    num_steps: int = 8


def kinds_of(suite: Suite) -> dict[str, Libero | None]:
    """Return the kinds of environments; None for the stock one."""
    ours = Libero(suite, cameras=tuple(CAMERA_NAMES))
    cheap = replace(ours, rendering="fast", simplified_meshes=True, small_textures=True)
    return {STOCK: None, OURS: ours, OURS_CHEAP: cheap}


def steppers(suite: Suite) -> dict[str, Stepper]:
    """Return what runs the same actions in an environment of each kind."""
    kinds = kinds_of(suite)
    full, cheap = kinds[OURS], kinds[OURS_CHEAP]
    assert full is not None
    assert cheap is not None
    task = full.tasks[0]
    state = full.evaluation_states(task)[0]
    stock = build_stock(full, task, seed=0, cameras=True)
    begin(stock, state)
    ours, cheaper = full.make(task), cheap.make(task)
    assert isinstance(ours, LiberoEnvironment)
    for environment in (ours, cheaper):
        environment.reset(state)
        environment.observe()  # loads meshes and textures
    data = copy.copy(ours._data)

    def step_stock(actions: Actions, *, cameras: bool) -> None:
        bind(stock)
        for camera in CAMERA_NAMES.values():
            stock.env.modify_observable(f"{camera}_image", "enabled", cameras)
        for action in actions:
            stock.step(action.astype(np.float64))

    def step_ours(actions: Actions, *, environment: Environment, reads: bool) -> None:
        for action in actions:
            environment.step(action)
        if reads:
            environment.observe()

    return {
        STOCK: functools.partial(step_stock, cameras=False),
        STOCK_CAMERAS: functools.partial(step_stock, cameras=True),
        PHYSICS: lambda actions: mujoco.mj_step(ours._model, data, len(actions) * NUM_SUBSTEPS),
        OURS: functools.partial(step_ours, environment=ours, reads=False),
        OURS_CAMERAS: functools.partial(step_ours, environment=ours, reads=True),
        OURS_CHEAP: functools.partial(step_ours, environment=cheaper, reads=True),
    }


def step_seconds(suite: Suite, num_blocks: int) -> dict[str, list[float]]:
    """Return the processor time of a step of each kind of environment, in every turn."""
    methods = steppers(suite)
    generator = np.random.default_rng(0)
    durations_s: dict[str, list[float]] = {name: [] for name in methods}
    for _ in track(range(num_blocks), "steps"):
        actions = generator.uniform(-1, 1, (EXECUTED, 7)).astype(np.float32)
        for name, run in methods.items():
            begin_s = time.process_time()
            run(actions)
            durations_s[name].append((time.process_time() - begin_s) / EXECUTED)
    return durations_s


def step_rows(suite: Suite, num_blocks: int) -> list[tuple[str, ...]]:
    """Return the rows of the first table."""
    durations_s = step_seconds(suite, num_blocks)
    median_s = {name: spread(values)[1] for name, values in durations_s.items()}
    rows: list[tuple[str, ...]] = []
    for name, value in median_s.items():
        reference, aim = AIMS.get(name, (STOCK, ""))
        rows.append((name, f"{1000 * value:.2f}", f"{median_s[reference] / value:.1f}", aim))
    return rows


def sizes_of(suite: Suite, kind: str) -> Sizes:
    """Build three environments in this process, which must be a fresh one."""
    benchmark = kinds_of(suite)[kind]
    first, further = Libero(suite).tasks[:2]
    kept, sizes = [], {}
    for name, task in (("first", first), ("further, same task", first), ("further task", further)):
        before, begin_s = psutil.Process().memory_info().rss, time.process_time()
        state = Libero(suite).evaluation_states(task)[0]
        if benchmark is None:
            stock = build_stock(Libero(suite), task, seed=0, cameras=True)
            begin(stock, state)
            kept.append(stock)
        else:
            environment = benchmark.make(task)
            environment.reset(state)
            environment.observe()
            kept.append(environment)
        gc.collect()
        sizes[name] = time.process_time() - begin_s, psutil.Process().memory_info().rss - before
    return sizes


def size_rows(suite: Suite, num_kinds: int) -> list[tuple[str, ...]]:
    """Return the rows of the second table."""
    rows: list[tuple[str, ...]] = []
    for kind in track(list(kinds_of(suite))[:num_kinds], "memory"):
        sizes = in_fresh_process(sizes_of, suite, kind)
        room = MACHINE_BYTES - sizes["first"][1]
        fitting = {name: 1 + int(room / max(size, 1)) for name, (_, size) in sizes.items()}
        rows += [
            (kind, name, f"{seconds:.1f}", f"{size / 1e6:,.0f}", "" if name == "first" else f"{fitting[name]:,}")
            for name, (seconds, size) in sizes.items()
        ]
    return rows


def growth(options: Options) -> tuple[list[int], list[int]]:
    """Run the episodes in this process, which must be a fresh one; return its bytes after each task, both times."""
    benchmark = Libero(options.growth_suite, cameras=tuple(CAMERA_NAMES))
    pool = EnvironmentPool(benchmark.make, MAX_ENVIRONMENTS, benchmark.spec.max_tasks)
    tasks = benchmark.tasks[: options.growth_tasks]
    per_visit = max(1, options.episodes // (2 * len(tasks)))
    sizes: list[int] = []
    for task in (*tasks, *tasks):
        states = benchmark.evaluation_states(task)[:per_visit]
        for environment, state in zip(pool.take([task] * per_visit), states, strict=True):
            environment.reset(state)
            for _ in range(options.num_steps):
                environment.step(np.zeros(7, np.float32))
            environment.observe()
        sizes.append(psutil.Process().memory_info().rss)
    return sizes[: len(tasks)], sizes[len(tasks) :]


def in_fresh_process(function: Callable[..., Result], *args: object) -> Result:
    """Return what a function returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *args).result()


def main(options: Options) -> None:
    """Run the benchmark and print the tables."""
    columns: Sequence[str] = ("", "ms per step", "stock / this", "aim")
    print_table(
        f"Processor time of an environment step, {options.suite}", columns, step_rows(options.suite, options.blocks)
    )
    columns = ("kind", "environment", "seconds", "MB", "in 24 GiB")
    title = f"Building, resetting and rendering an environment in one process, {options.suite}"
    print_table(title, columns, size_rows(options.suite, options.kinds))
    first, second = (max(sizes) for sizes in in_fresh_process(growth, options))
    print(
        f"{options.episodes} episodes over {options.growth_tasks} tasks: at most {first / 1e6:,.0f} MB the first time, "
        f"{second / 1e6:,.0f} MB the second: {100 * (second / first - 1):+.1f} %"
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
