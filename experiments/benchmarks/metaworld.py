"""What does a step of MetaWorld cost beside its physics, and a reset beside a stock one?

Question: how much processor time does our environment take over MuJoCo's five simulator steps alone, and over the stock
    environment (package `metaworld`), which also computes rewards and observations that nobody reads?
Method: one process and one thread, ways in turn in every round, each over the same steps of the scripted expert:
    MuJoCo's steps alone, each from the state that the stock environment was in; ours without looking; ours with an
    observation before every eighth action, as a policy with chunks of eight sees it; the stock environment. A first
    reset has an initial state that the process has not met; a second one repeats it, as the rollouts of a group do.
    Ratios within a round; minimum, median and maximum over the rounds.
Expected: a step of ours at most 1.3 times its physics, of which the evaluation of forces after the last simulator step,
    part of the stock environment's results, takes 1.15 to 1.25; a repeated reset at most 2 ms.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
import tyro
from numpy.typing import NDArray
from rich.progress import track

from experiments.benchmarks.stock_metaworld import (
    INTEGRATION,
    StockExpert,
    build_stock,
    give_initial_state,
    integration_state,
)
from experiments.benchmarks.timed import extremes, print_table
from ript_envs.contract import Environment
from ript_envs.metaworld.benchmark import MetaWorld

LOOK_EVERY = 8
"""Steps between observations of a policy with chunks."""

NS_PER_MS = 1e6


@dataclass(frozen=True)
class Options:
    """Sizes of the benchmark.

    Attributes:
        tasks: The tasks; empty: all 50.
        rounds: Rounds, each of which takes every way in turn.
        num_steps: Steps per way and round.
    """

    tasks: tuple[str, ...] = ()
    rounds: int = 5
    num_steps: int = 100


@dataclass(frozen=True)
class Path:
    """What the expert did in the stock environment: actions, and the states from which MuJoCo stepped."""

    initial_state: NDArray[np.float64]
    actions: list[NDArray[np.float32]]
    states: list[NDArray[np.float64]]


@dataclass(frozen=True)
class Times:
    """Processor time of a task in one round, in nanoseconds."""

    physics: int
    ours: int
    looking: int
    stock: int
    reset_first: int
    reset_again: int
    reset_stock: int


def record_path(stock: Any, task: str, initial_state: NDArray[np.float64], num_steps: int) -> Path:
    """Let the expert act, and keep the state after each of its actions was given to MuJoCo."""
    path, expert = Path(initial_state, [], []), StockExpert(task)
    seen, _ = stock.reset()
    for _ in range(num_steps):
        path.actions.append(expert(stock, seen))
        before = integration_state(stock)
        stock.set_xyz_action(path.actions[-1][:3])
        stock.data.ctrl[:] = path.actions[-1][-1], -path.actions[-1][-1]
        path.states.append(integration_state(stock))
        mujoco.mj_setState(stock.model, stock.data, before, INTEGRATION)
        seen, *_ = stock.step(path.actions[-1])
    return path


def time_physics(stock: Any, path: Path) -> int:
    """Return the time of MuJoCo's steps alone, without that of setting the states."""
    total = 0
    for state in path.states:
        mujoco.mj_setState(stock.model, stock.data, state, INTEGRATION)
        total += _time(lambda: mujoco.mj_step(stock.model, stock.data, nstep=stock.frame_skip))
    return total


def time_ours(environment: Environment, path: Path, look_every: int | None) -> int:
    """Return the time of the path's steps in our environment, looking before every `look_every`-th one or never."""
    environment.reset(path.initial_state)

    def act() -> None:
        for index, action in enumerate(path.actions):
            if look_every and index % look_every == 0:
                environment.observe()
            environment.step(action)

    return _time(act)


def time_stock(stock: Any, path: Path) -> int:
    """Return the time of the path's steps in the stock environment."""
    stock.reset()

    def act() -> None:
        for action in path.actions:
            stock.step(action)

    return _time(act)


def measure(task: str, options: Options) -> list[Times]:
    """Return the times of each round."""
    benchmark = MetaWorld()
    ours, path_state = benchmark.make(task), benchmark.draw_initial_state(task, (0,))
    stock = build_stock(task, path_state)
    path = record_path(stock, task, path_state, options.num_steps)
    rounds = []
    for index in range(options.rounds):
        new_state = benchmark.draw_initial_state(task, (1, index))
        first, again = (_time(lambda: ours.reset(new_state)) for _ in range(2))  # noqa: B023 (called at once)
        give_initial_state(stock, task, new_state)
        reset_stock = _time(stock.reset)
        give_initial_state(stock, task, path_state)
        steps = (
            time_physics(stock, path),
            time_ours(ours, path, None),
            time_ours(ours, path, LOOK_EVERY),
            time_stock(stock, path),
        )
        rounds.append(Times(*steps, first, again, reset_stock))
    ours.close()
    stock.close()
    return rounds


def main(options: Options) -> None:
    """Run the benchmark and print the table."""
    tasks = options.tasks or MetaWorld().tasks
    by_task = {task: measure(task, options) for task in track(tasks, "tasks")}
    by_task["all"] = [times for rounds in by_task.values() for times in rounds]
    size = f"{options.rounds} rounds of {options.num_steps} steps: minimum, median, maximum"
    names = ("stock / ours", "ours / physics", "with looks")
    print_table(f"Step; {size}", ("task", *names), _rows(by_task, _step_figures))
    names = ("first reset, ms", "again, ms", "stock, ms")
    print_table(f"Reset; {size}", ("task", *names), _rows(by_task, _reset_figures))


def _step_figures(times: Times) -> tuple[float, ...]:
    return times.stock / times.ours, times.ours / times.physics, times.looking / times.physics


def _reset_figures(times: Times) -> tuple[float, ...]:
    return times.reset_first / NS_PER_MS, times.reset_again / NS_PER_MS, times.reset_stock / NS_PER_MS


def _rows(
    by_task: Mapping[str, Sequence[Times]], figures: Callable[[Times], tuple[float, ...]]
) -> Iterator[tuple[str, ...]]:
    for task, rounds in by_task.items():
        columns = zip(*(figures(times) for times in rounds), strict=True)
        yield (
            task.removesuffix("-v3"),
            *(" ".join(f"{figure:.3g}" for figure in extremes(column)) for column in columns),
        )


def _time(act: Callable[[], object]) -> int:
    """Return the processor time of this thread in nanoseconds."""
    begin = time.thread_time_ns()
    act()
    return time.thread_time_ns() - begin


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
