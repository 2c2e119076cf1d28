"""What is gained where rollouts and learning overlap?

Question: how many groups per second more does `sampling.max_policy_lag` 1 or 2 bring than 0, where the learner is as
    slow as the rollouts?
Method: environments sleep, and so does the policy when it scores decisions: a batch of rollouts takes about as long
    as an update. One run per lag, on the same number of actors; groups trained per second from the end of the first
    update to the end of the last.
Expected: nearly 2 for a lag of 1 (while one batch is learned from, the next one is rolled out), and no more for a lag
    of 2, which helps only where durations vary; no group older than the lag.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import tyro
from timed import TimedPolicy, local_ray, make_timed, print_table, timed_stream

from ript_ray.config.rl import PPO, Sampling
from ript_ray.rl.callbacks import RolloutStats, UpdateRecord
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.learner import UpdateReport
from ript_ray.rl.protocols import Components
from ript_ray.rl.train import train
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.ray_runtime import RayRuntime
from ript_ray.types import GroupSummary, Version

GROUP_SIZE, NUM_STEPS, NUM_ITERATIONS = 4, 5, 4


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        lags: Values of `sampling.max_policy_lag`; the gain is against the first.
        num_actors: Rollout actors.
        batch_groups: Groups of an update.
        group_s: Seconds that a group takes.
        num_updates: Updates that are counted, after the first.
    """

    lags: tuple[int, ...] = (0, 1, 2)
    num_actors: int = 4
    batch_groups: int = 8
    group_s: float = 1.0
    num_updates: int = 15


class WatchedRuntime(RayRuntime):
    """Notes the version of every group, and how old it is when it is trained."""

    def __init__(self, parts: Components, cluster: Cluster):
        super().__init__(parts, cluster)
        self.ages: list[int] = []
        self._version = Version(0)
        self._made_by: dict[int, Version] = {}

    def next_event(self) -> GroupSummary | UpdateReport:
        """Note who made a group, and that an update is over."""
        event = super().next_event()
        if isinstance(event, GroupSummary):
            self._made_by[event.index] = event.version
        else:
            self._version = Version(self._version + 1)
        return event

    def start_update(self, indices: Sequence[int]) -> None:
        """Note the groups' ages."""
        self.ages += [self._version - self._made_by.pop(index) for index in indices]
        super().start_update(indices)


class Stopwatch:
    """Notes when each update ends, and how long it took."""

    def __init__(self) -> None:
        self.ends_s: list[float] = []
        self.learn_s: list[float] = []

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        """Let `train` go on."""

    def on_update(self, record: UpdateRecord) -> None:
        """Note the time."""
        self.ends_s.append(time.perf_counter())
        self.learn_s.append(record.report.learn_s)


def measure(lag: int, options: Options) -> tuple[float, float, int]:
    """Groups trained per second, seconds per update of the learner alone, and the age of the oldest group."""
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
    runtime = WatchedRuntime(parts, Cluster(num_actors=options.num_actors, cpus_per_actor=0.01))
    watch = Stopwatch()
    try:
        train(
            runtime,
            timed_stream(),
            sampling=Sampling(group_size=GROUP_SIZE, batch_rollouts=batch_rollouts, max_policy_lag=lag),
            num_updates=1 + options.num_updates,
            seed=0,
            callbacks=[watch],
        )
    finally:
        runtime.close()
    num_groups = options.num_updates * options.batch_groups
    groups_per_s = num_groups / (watch.ends_s[-1] - watch.ends_s[0])
    return groups_per_s, sum(watch.learn_s[1:]) / options.num_updates, max(runtime.ages)


def main(options: Options) -> None:
    """Measure and print."""
    figures = [(lag, *measure(lag, options)) for lag in options.lags]
    first = figures[0][1]
    rows = [
        (str(lag), f"{groups_per_s:.2f}", f"{groups_per_s / first:.2f}", f"{learn_s:.2f}", str(oldest))
        for lag, groups_per_s, learn_s, oldest in figures
    ]
    batch_s = options.group_s * options.batch_groups / options.num_actors
    title = f"Rollouts of {batch_s:g} s and updates as long, {options.num_updates} times"
    print_table(title, ("lag", "groups/s", "gain", "update, s", "largest lag seen"), rows)


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    with local_ray():
        main(chosen)
