"""Does throughput scale with the number of rollout actors?

Question: with environments of known duration, how close does the runtime come to `num_actors / duration` groups per
    second, and how many actors can one driver serve?
Method: environments sleep, so that a group of one episode takes two seconds and almost no processor time: tens of
    logical actors fit on one core, and the benchmark measures the runtime (dispatch, waiting, summaries), not the
    machine. For each number of actors: start them, warm up with one group each, launch the first groups evenly spaced
    over the duration of a group (otherwise all actors would need the machine's cores at the same moment), keep every
    actor busy, and count groups from the first result to the last.
Expected: efficiency of 95 % or more at every number of actors. An actor uses about 180 MB of memory.
"""

import functools
import time
from dataclasses import dataclass

import tyro
from rich.progress import track

from experiments.benchmarks.timed import TimedPolicy, local_ray, make_timed, print_table, timed_requests
from ript_ray.config.rl import PPO
from ript_ray.rl.protocols import Components, Runtime
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.factory import open_runtime
from ript_ray.types import GroupSummary

NUM_STEPS = 8


@dataclass(frozen=True)
class Options:
    """Sizes of the benchmark.

    Attributes:
        max_actors: Largest number of actors; 1, 2, 4, ... are measured.
        point_s: Duration of the measurement per number of actors, in seconds, rounded to whole rounds of groups.
        group_s: Duration of a group, in seconds.
    """

    max_actors: int = 16
    point_s: float = 20.0
    group_s: float = 2.0


def measure(num_actors: int, options: Options) -> tuple[int, float]:
    """Return the groups that `num_actors` busy actors finished, and the seconds they took."""
    parts = Components(
        build_policy=TimedPolicy,
        make_environment=functools.partial(make_timed, group_s=options.group_s, group_size=1, num_steps=NUM_STEPS),
        max_steps=NUM_STEPS,
        ppo=PPO(),
        seed=0,
        learner_threads=1,
    )
    cluster = Cluster(num_actors=num_actors, cpus_per_actor=0.01, start_timeout_s=600)
    num_groups = num_actors * max(2, round(options.point_s / options.group_s))
    with open_runtime(parts, cluster, with_learner=False) as runtime:
        _run(runtime, num_actors)
        ends_s = _run(runtime, num_groups, num_staggered=num_actors - 1, pause_s=options.group_s / num_actors)
        return num_groups - 1, ends_s[-1] - ends_s[0]


def _run(runtime: Runtime, num_groups: int, *, num_staggered: int = 0, pause_s: float = 0.0) -> list[float]:
    """Run groups, pausing after each of the first `num_staggered` launches; returns the time of each result."""
    for request in timed_requests(num_groups, group_size=1):
        runtime.launch(request)
        time.sleep(pause_s if request.index < num_staggered else 0.0)
    ends_s = []
    for _ in range(num_groups):
        event = runtime.next_event()
        assert isinstance(event, GroupSummary)
        runtime.discard(event.index)
        ends_s.append(time.perf_counter())
    return ends_s


def main(options: Options) -> None:
    """Run the benchmark and print the table."""
    counts = [2**power for power in range(options.max_actors.bit_length())]
    figures = [(count, *measure(count, options)) for count in track(counts, "actors")]
    rows = [
        (
            str(count),
            str(num_groups),
            f"{seconds:.2f}",
            f"{num_groups / seconds:.2f}",
            f"{count / options.group_s:.2f}",
            f"{num_groups / seconds / (count / options.group_s):.1%}",
        )
        for count, num_groups, seconds in figures
    ]
    title = f"Groups that sleep for {options.group_s:g} s"
    print_table(title, ("actors", "groups", "seconds", "groups/s", "ideal", "efficiency"), rows)


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    with local_ray():
        main(chosen)
