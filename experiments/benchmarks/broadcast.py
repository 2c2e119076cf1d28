"""How long do new weights take to reach every actor?

Question: how long does one broadcast take (snapshot and checksum in the learner, object store, then checksum and copy
    into the policy on every actor), as a function of policy size and number of actors?
Method: the policy is parameters only; the learner assigns them a new version, so that every actor loads them again.
    `RayRuntime.broadcast` returns once every actor has answered with the checksum of what it received. The first
    broadcast (fresh memory) is not counted.
Expected: 300 MB to 8 actors on two cores within a few seconds. The actors read one shared copy, but each hashes it, so
    the time grows with the number of actors per core and stays nearly constant if every actor has its own core.
"""

import time
from dataclasses import dataclass

import tyro
from rich.progress import track

from experiments.benchmarks.timed import local_ray, print_table, spread, timed_components, timed_requests
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.factory import open_runtime
from ript_ray.types import GroupSummary, Version


@dataclass(frozen=True)
class Options:
    """Sizes of the benchmark.

    Attributes:
        megabytes: Sizes of the trainable parameters, in MB (10^6 bytes).
        actors: Numbers of actors.
        num_broadcasts: Broadcasts measured per point.
    """

    megabytes: tuple[int, ...] = (1, 80, 300)
    actors: tuple[int, ...] = (2, 4, 8)
    num_broadcasts: int = 7


def measure(num_bytes: int, num_actors: int, num_broadcasts: int) -> list[float]:
    """Return the duration of each broadcast, in seconds."""
    parts = timed_components(num_bytes=num_bytes, group_s=0.0, group_size=1, num_steps=1)
    durations_s = []
    with open_runtime(parts, Cluster(num_actors=num_actors, cpus_per_actor=0.01, start_timeout_s=600)) as runtime:
        for number in range(1 + num_broadcasts):
            runtime.restore(Version(number), {})
            started = time.perf_counter()
            weights = runtime.broadcast()
            durations_s.append(time.perf_counter() - started)
            assert weights.version == number
        runtime.launch(timed_requests(1, group_size=1)[0])
        event = runtime.next_event()
        assert isinstance(event, GroupSummary)
        assert event.version == num_broadcasts, "the actors did not load the weights"
    return durations_s[1:]


def main(options: Options) -> None:
    """Run the benchmark and print the table."""
    points = [(size, count) for size in options.megabytes for count in options.actors]
    rows = []
    for size, count in track(points, "points"):
        low, median, high = spread(measure(size * 1_000_000, count, options.num_broadcasts))
        rows.append((f"{size}", f"{count}", f"{median:.3f}", f"{low:.3f}-{high:.3f}", f"{size / median:.0f}"))
    title = f"Broadcasts, median and quartiles of {options.num_broadcasts}"
    print_table(title, ("MB", "actors", "seconds", "quartiles", "MB/s per actor"), rows)


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    with local_ray():
        main(chosen)
