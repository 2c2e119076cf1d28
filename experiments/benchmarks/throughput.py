"""Do groups per second grow with the rollout actors?

Question: with environments of known duration, how near does the runtime come to `num_actors / duration` groups per
    second, and up to how many actors does one driver serve?
Method: environments sleep, so that a group of one episode takes two seconds and nearly no processor time: tens of
    logical actors fit on one core, and what is measured is the runtime (dispatch, waiting, summaries), not the
    machine. Per number of actors: start them, warm up with one group each, launch first groups evenly over the
    duration of one (in step, all actors would want this machine's cores at the same moment), keep every actor busy,
    and count groups from the first answer to the last.
Expected: efficiency of 95 % or more at every number of actors. An actor takes about 180 MB of memory.
"""

import functools
import time
from dataclasses import dataclass

import tyro
from rich.progress import track
from timed import TimedPolicy, local_ray, make_timed, print_table, timed_requests

from ript_ray.config.rl import PPO
from ript_ray.rl.protocols import Components, Runtime
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.factory import open_runtime
from ript_ray.types import GroupSummary

NUM_STEPS = 8


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        max_actors: Measure 1, 2, 4, ... actors, up to so many.
        point_s: Seconds of measuring per number of actors, rounded to whole rounds of groups.
        group_s: Seconds that a group takes.
    """

    max_actors: int = 16
    point_s: float = 20.0
    group_s: float = 2.0


def measure(num_actors: int, options: Options) -> tuple[int, float]:
    """Groups made by so many busy actors, and the seconds they took."""
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
        answered_s = _run(runtime, num_groups, num_apart=num_actors - 1, pause_s=options.group_s / num_actors)
        return num_groups - 1, answered_s[-1] - answered_s[0]


def _run(runtime: Runtime, num_groups: int, *, num_apart: int = 0, pause_s: float = 0.0) -> list[float]:
    """Run groups, with a pause after each of the first `num_apart`; returns when the answers came."""
    for request in timed_requests(num_groups, group_size=1):
        runtime.launch(request)
        time.sleep(pause_s if request.index < num_apart else 0.0)
    answered_s = []
    for _ in range(num_groups):
        event = runtime.next_event()
        assert isinstance(event, GroupSummary)
        runtime.discard(event.index)
        answered_s.append(time.perf_counter())
    return answered_s


def main(options: Options) -> None:
    """Measure and print."""
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
    title = f"Groups of {options.group_s:g} s, asleep"
    print_table(title, ("actors", "groups", "seconds", "groups/s", "ideal", "efficiency"), rows)


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    with local_ray():
        main(chosen)
