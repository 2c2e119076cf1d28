"""What limits us? Every part beside its limit or its alternative, in one table.

Question: how far is an environment step from its physics and from the stock environment's, what do pictures add, where
    does the time of rollouts and of updates go, what does Ray's part cost, and how long do actors wait?
Method: ratios and shares within one round, of processor time, ways in turn, on one machine; minimum, median and maximum
    over the rounds. The last rows are a short run of the quickstart with Ray and two actors. See `metaworld`, `libero`,
    `where_time_goes` and `broadcast` for the parts; each is a benchmark of its own with more of them.
Expected: the figures of docs/performance.md, on a machine that does nothing else.
"""

import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.progress import track

from experiments.benchmarks import authors, broadcast, libero, metaworld, where_time_goes
from experiments.benchmarks.timed import extremes, local_ray, timed_components, timed_requests
from ript_envs.libero.benchmark import Suite
from ript_envs.metaworld.benchmark import MetaWorld
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.factory import open_runtime
from ript_ray.runtime.host import num_cpus, processor


@dataclass(frozen=True)
class Options:
    """Sizes of the benchmark.

    Attributes:
        tasks: MetaWorld's.
        suites: LIBERO's, whose first tasks are measured.
        experiments: Whose rollouts and updates are taken apart.
        rounds: Rounds of everything.
        num_steps: Environment steps of a round.
        megabytes: Size of a broadcast, in MB (10^6 bytes); 0 for no measurement of Ray.
        num_updates: Updates of the run; 0 for no run.
        authors: A checkout of QueST's code, to race as well; see `experiments.benchmarks.authors`.
        output: Markdown file that the table is written to.
    """

    tasks: tuple[str, ...] = ("window-open-v3", "pick-place-v3")
    suites: tuple[Suite, ...] = ("libero_object",)
    experiments: tuple[str, ...] = ("quickstart", "pixels")
    rounds: int = 5
    num_steps: int = 100
    megabytes: int = 80
    num_updates: int = 6
    authors: Path | None = None
    output: Path | None = None


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        part: What is measured.
        measure: The figure, with its unit.
        values: One per round.
        form: How a value is printed.
    """

    part: str
    measure: str
    values: Sequence[float]
    form: str = ".2f"

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the row."""
        return (self.part, self.measure, *(format(figure, self.form) for figure in extremes(self.values)))


def metaworld_rows(task: str, options: Options) -> Iterator[Row]:
    """Compare MetaWorld's steps and resets with physics and stock, and one with a picture with one without."""
    rounds = metaworld.measure(task, metaworld.Options(rounds=options.rounds, num_steps=options.num_steps))
    part = f"MetaWorld, {task.removesuffix('-v3')}"
    yield Row(part, "step, ours / MuJoCo's", [each.ours / each.physics for each in rounds])
    yield Row(part, "step, stock / ours", [each.stock / each.ours for each in rounds])
    yield Row(
        part, "reset to a state met before, stock / ours", [each.reset_stock / each.reset_again for each in rounds]
    )
    yield Row(part, "8 steps and a picture / 8 steps", picture_ratios(task, options.rounds), ".1f")


def picture_ratios(task: str, num_rounds: int) -> list[float]:
    """Return what 8 steps and a picture take over 8 steps alone, in each round."""
    benchmark = MetaWorld(cameras=("corner_rgb",))
    environment = benchmark.make(task)
    environment.reset(benchmark.draw_initial_state(task, (0,)))
    environment.observe()  # loads meshes and textures
    ratios, generator = [], np.random.default_rng(0)
    for _ in range(num_rounds):
        actions = generator.uniform(-1, 1, (metaworld.LOOK_EVERY, 4)).astype(np.float32)
        started = time.process_time()
        for action in actions:
            environment.step(action)
        stepped = time.process_time()
        environment.observe()
        ratios.append((time.process_time() - started) / (stepped - started))
    environment.close()
    return ratios


def libero_rows(suite: Suite, options: Options) -> Iterator[Row]:
    """Compare LIBERO's steps with physics and stock, without and with pictures."""
    seconds = libero.step_seconds(suite, options.rounds)

    def ratios(dividend: str, divisor: str) -> list[float]:
        return [above / below for above, below in zip(seconds[dividend], seconds[divisor], strict=True)]

    yield Row(suite, "step, ours / MuJoCo's", ratios(libero.OURS, libero.PHYSICS))
    yield Row(suite, "step, stock / ours", ratios(libero.STOCK, libero.OURS))
    yield Row(suite, "8 steps and two pictures, stock / ours", ratios(libero.STOCK_CAMERAS, libero.OURS_CAMERAS))
    yield Row(suite, "the same, ours with cheap scenery", ratios(libero.STOCK_CAMERAS, libero.OURS_CHEAP))


def share_rows(name: str, options: Options) -> Iterator[Row]:
    """Take the rollouts and updates of an experiment apart."""
    experiment = where_time_goes.EXPERIMENTS[name]
    rounds, groups = where_time_goes.rollouts(experiment, options.rounds)
    for part in where_time_goes.ROLLOUT_PARTS:
        yield Row(f"{name}, a rollout", f"{part}, %", [100 * spent.share(part) for spent in rounds], ".1f")
    rounds = where_time_goes.updates(experiment, groups, options.rounds)
    for part in where_time_goes.UPDATE_PARTS:
        yield Row(f"{name}, an update", f"{part}, %", [100 * spent.share(part) for spent in rounds], ".1f")


def ray_rows(options: Options) -> Iterator[Row]:
    """Measure a broadcast and the start of actors."""
    seconds = broadcast.measure(1_000_000 * options.megabytes, 2, options.rounds)
    yield Row("Ray", f"broadcast of {options.megabytes} MB to two actors, s", seconds)
    seconds = [start_s() for _ in range(options.rounds)]
    yield Row("Ray", "start of two actors and a learner, to the first group, s", seconds)


def start_s() -> float:
    """Return the seconds until two actors and a learner have started and a group is rolled out."""
    started = time.perf_counter()
    cluster = Cluster(num_actors=2, cpus_per_actor=0.01, start_timeout_s=600)
    with open_runtime(timed_components(num_bytes=4, group_s=0.0, group_size=1, num_steps=1), cluster) as runtime:
        runtime.broadcast()
        runtime.launch(timed_requests(1, group_size=1)[0])
        runtime.next_event()
        return time.perf_counter() - started


def run_rows(options: Options) -> Iterator[Row]:
    """Run the quickstart for a few updates, and see how long actors waited and what the kernel took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        sizes = ("--num-updates", f"{options.num_updates}", "--evaluation.contexts-per-task", "1")
        quietly = ("--view", "quiet", "--trackers", "--runs", folder)
        subprocess.run(
            (sys.executable, "-m", "experiments.quickstart", *sizes, *quietly), check=True, stdout=sys.stderr
        )
        lines = (Path(folder) / "quickstart" / "latest" / "metrics.jsonl").read_text().splitlines()
    points = [json.loads(line) for line in lines]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    updates = [metrics for point in points if "time/actors_idle" in (metrics := point["metrics"])]
    part = "quickstart on two actors"
    yield Row(part, "actors idle, % of all time", [100 * each["time/actors_idle"] for each in updates], ".1f")
    learning = [each["time/learn_s"] / (each["time/learn_s"] + each["time/rollout_s"]) for each in updates]
    yield Row(part, "of it while the learner trains, % of all time", [100 * share for share in learning], ".1f")
    user_s, system_s = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    yield Row(part, "the driver's processor time in the kernel, %", [100 * system_s / (user_s + system_s)], ".1f")


def rows_of(options: Options) -> Iterator[Row]:
    """Measure everything."""
    for task in options.tasks:
        yield from metaworld_rows(task, options)
    for suite in options.suites:
        yield from libero_rows(suite, options)
    for name in options.experiments:
        yield from share_rows(name, options)
    if options.authors is not None:
        for measure, ratios in authors.measure(authors.Options(options.authors, rounds=options.rounds)):
            yield Row("QueST as published", measure, ratios)
    if options.megabytes:
        yield from ray_rows(options)
    if options.num_updates:
        yield from run_rows(options)


def markdown(rows: Iterable[Row]) -> str:
    """Return the table."""
    lines = ["| part | measure | minimum | median | maximum |", "|---|---|--:|--:|--:|"]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def page(table: str) -> str:
    """Return the page of the documentation."""
    machine = f"{processor()}, {num_cpus()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    return f"""# Measurements

Written by `make bench` on {time.strftime("%Y-%m-%d")} ({machine}).
Ratios and shares of one run, of processor time. What they mean, and what did not pay: [Performance](performance.md).

{table}"""


def main(options: Options) -> None:
    """Run the benchmark, print the table, and write it if that is asked for."""
    table = markdown(list(track(rows_of(options), "measures")))
    if options.authors is None:
        table += "\nThe authors' code was not raced: no checkout of it was given (`--authors`).\n"
    print(table)
    if options.output is not None:
        options.output.write_text(page(table))


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    with local_ray():
        main(chosen)
