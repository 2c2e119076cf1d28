"""How much faster is training if rollouts and learning overlap?

Question: how much does `sampling.max_policy_lag` 1 or 2 increase throughput (groups per second) over 0, if the learner
    is as slow as the rollouts?
Method: environments sleep, and the policy sleeps when it scores decisions, so that a batch of rollouts takes about as
    long as an update. One run per lag, with the same number of actors; throughput is measured from the end of the first
    update to the end of the last.
Expected: a speedup of nearly 2 at lag 1 (one batch is collected while the previous one is learned from), and no more at
    lag 2, which helps only if durations vary; no group is older than the lag.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from experiments.benchmarks.timed import TimedPolicy, local_ray, make_timed, print_table, timed_stream
from ript_ray.config.rl import PPO, Sampling
from ript_ray.rl.callbacks import RolloutStats, UpdateRecord
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.learner import UpdateReport
from ript_ray.rl.protocols import Components, Rerun
from ript_ray.rl.train import train
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.ray_runtime import RayRuntime
from ript_ray.types import GroupSummary, Version

GROUP_SIZE, NUM_STEPS, NUM_ITERATIONS = 4, 5, 4


@dataclass(frozen=True)
class Options:
    """Sizes of the benchmark.

    Attributes:
        lags: Values of `sampling.max_policy_lag`; the speedup is relative to the first.
        num_actors: Rollout actors.
        batch_groups: Groups per update.
        group_s: Duration of a group, in seconds.
        num_updates: Updates measured, after the first.
    """

    lags: tuple[int, ...] = (0, 1, 2)
    num_actors: int = 4
    batch_groups: int = 8
    group_s: float = 1.0
    num_updates: int = 15


class AgeRecordingRuntime(RayRuntime):
    """Runtime that records how many versions old each group is when it is trained on."""

    def __init__(self, parts: Components, cluster: Cluster):
        super().__init__(parts, cluster)
        self.ages: list[int] = []
        self._version = Version(0)
        self._sampled_by: dict[int, Version] = {}

    def next_event(self) -> GroupSummary | UpdateReport:
        """Record the version that sampled a group, and count updates."""
        event = super().next_event()
        if isinstance(event, GroupSummary):
            self._sampled_by[event.index] = event.version
        else:
            self._version = Version(self._version + 1)
        return event

    def start_update(self, indices: Sequence[int]) -> Sequence[Rerun]:
        """Record the ages of the groups."""
        self.ages += [self._version - self._sampled_by.pop(index) for index in indices]
        return super().start_update(indices)


class Stopwatch:
    """Callback that records when each update ends and how long the learner took."""

    def __init__(self) -> None:
        self.ends_s: list[float] = []
        self.learn_s: list[float] = []

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        """Do nothing."""

    def on_update(self, record: UpdateRecord) -> None:
        """Record the time."""
        self.ends_s.append(time.perf_counter())
        self.learn_s.append(record.report.learn_s)


def measure(lag: int, options: Options) -> tuple[float, float, int]:
    """Return groups trained per second, seconds per update in the learner alone, and the age of the oldest group."""
    batch_rollouts = options.batch_groups * GROUP_SIZE
    batch_s = options.group_s * options.batch_groups / options.num_actors
    parts = Components(
        build_policy=functools.partial(TimedPolicy, score_s=batch_s / NUM_ITERATIONS),
        make_environment=functools.partial(
            make_timed, group_s=options.group_s, group_size=GROUP_SIZE, num_steps=NUM_STEPS
        ),
        max_steps=NUM_STEPS,
        ppo=PPO(num_iterations=NUM_ITERATIONS, minibatch_rollouts=batch_rollouts),
        seed=0,
        learner_threads=1,
    )
    runtime = AgeRecordingRuntime(
        parts, Cluster(num_actors=options.num_actors, cpus_per_actor=0.01, start_timeout_s=600)
    )
    stopwatch = Stopwatch()
    try:
        train(
            runtime,
            timed_stream(),
            sampling=Sampling(group_size=GROUP_SIZE, batch_rollouts=batch_rollouts, max_policy_lag=lag),
            num_updates=1 + options.num_updates,
            seed=0,
            callbacks=[stopwatch],
        )
    finally:
        runtime.close()
    num_groups = options.num_updates * options.batch_groups
    groups_per_s = num_groups / (stopwatch.ends_s[-1] - stopwatch.ends_s[0])
    return groups_per_s, sum(stopwatch.learn_s[1:]) / options.num_updates, max(runtime.ages)


def main(options: Options) -> None:
    """Run the benchmark and print the table."""
    figures = [(lag, *measure(lag, options)) for lag in options.lags]
    first = figures[0][1]
    rows = [
        (str(lag), f"{groups_per_s:.2f}", f"{groups_per_s / first:.2f}", f"{learn_s:.2f}", str(oldest))
        for lag, groups_per_s, learn_s, oldest in figures
    ]
    batch_s = options.group_s * options.batch_groups / options.num_actors
    title = f"{options.num_updates} updates; rollouts and learning take {batch_s:g} s each"
    print_table(title, ("lag", "groups/s", "speedup", "update, s", "largest lag seen"), rows)


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    with local_ray():
        main(chosen)
