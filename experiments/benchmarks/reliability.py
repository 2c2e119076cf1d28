"""What does it cost that nothing is lost, nothing is trained twice, and nothing hangs?

Question: how much slower are rollouts under deadlines, ledger, inspection, summaries, checksums and backup copies than
    under a loop that has nothing of it?
Method: the same rollouts in turn, batch by batch: inside `train` on the Ray runtime, then in a bare loop of the same
    number of actors with `ray.wait` around the same `roll_out`, which puts weights into the store, has actors copy
    them, and sends groups on by reference: no deadline, no check, no book. Groups burn a fixed amount of processor
    time, like those of the quickstart in size and number of queries. The ratio is taken batch by batch, on the wall
    clock (what a user waits; neighbours on the machine disturb it) and in processor time of all of Ray's processes
    and this one, over all batches (what the machinery costs; neighbours hardly matter). Learning is not counted.
Expected: at most 2 % for groups of 0.2 s.
"""

import functools
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
import psutil
import ray
import torch
import tyro
from numpy.typing import NDArray
from timed import TimedPolicy, local_ray, make_timed, print_table, spread, timed_requests, timed_stream

from ript_ray.config.rl import PPO, Sampling
from ript_ray.rl.callbacks import RolloutStats, UpdateRecord
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.protocols import Components
from ript_ray.rl.rollout import roll_out
from ript_ray.rl.rollout_worker import RolloutWorker
from ript_ray.rl.train import train
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.factory import open_runtime
from ript_ray.runtime.ray_calls import NO_TASK_EVENTS
from ript_ray.types import Group, GroupSummary, RolloutRequest, Weights

NUM_STEPS, CHUNK_LENGTH = 104, 8


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        group_s: Processor time that a group takes, in seconds.
        group_size: Rollouts of a group, even.
        num_actors: Actors of each of the two.
        batch_groups: Groups of a batch.
        num_batches: Batches of each of the two.
    """

    group_s: float = 0.2
    group_size: int = 8
    num_actors: int = 2
    batch_groups: int = 20
    num_batches: int = 30


class BareWorker(RolloutWorker):
    """The same worker without inspection, summary and checksum."""

    def load_unchecked(self, weights: Weights) -> None:
        """Copy weights into the policy."""
        start = 0
        with torch.no_grad():
            for parameter in self._policy.trainable().values():
                end = start + parameter.numel() * parameter.element_size()
                part = torch.from_numpy(weights.buffer[start:end].copy())
                parameter.copy_(part.view(parameter.dtype).view(parameter.shape))
                start = end

    def roll_unchecked(self, request: RolloutRequest) -> Group:
        """Run a request's episodes."""
        torch.set_num_threads(1)
        return roll_out(request, self._policy, self._pool, max_steps=self._max_steps, version=self._version)


class Sink:
    """Where the bare loop's groups go, as the others go to the learner."""

    def receive(self, group: Group) -> None:
        """Forget it."""


class BareLoop:
    """Everything that rollouts on Ray need, and nothing else."""

    def __init__(self, parts: Components, num_actors: int):
        worker_class = ray.remote(num_cpus=0, **NO_TASK_EVENTS)(BareWorker)
        arguments = (parts.build_policy, parts.make_environment, parts.max_steps)
        self._actors = [worker_class.remote(*arguments) for _ in range(num_actors)]
        self._sink = ray.remote(num_cpus=0, **NO_TASK_EVENTS)(Sink).remote()
        ray.get([actor.__ray_ready__.remote() for actor in self._actors], timeout=600)

    def run(self, weights: Weights, requests: list[RolloutRequest]) -> None:
        """Send weights out and run requests."""
        reference = ray.put(weights)
        ray.get([actor.load_unchecked.remote(reference) for actor in self._actors], timeout=600)
        waiting = deque(requests)
        running = {actor.roll_unchecked.remote(waiting.popleft()): actor for actor in self._actors if waiting}
        while running:
            (group,), _ = ray.wait(list(running), timeout=600)
            actor = running.pop(group)
            self._sink.receive.remote(group)
            if waiting:
                running[actor.roll_unchecked.remote(waiting.popleft())] = actor


def clocks() -> NDArray[np.float64]:
    """The wall clock, and the processor time of this process and all of Ray's, which are its children; seconds."""
    driver = psutil.Process()
    times = [process.cpu_times() for process in (driver, *driver.children(recursive=True))]
    return np.array([time.perf_counter(), sum(spent.user + spent.system for spent in times)])


class Turns:
    """After every batch of `train`, the bare loop takes its turn with one as large.

    Attributes:
        with_machinery: Wall and processor time of each batch in `train`, seconds.
        bare: The same of each batch in the bare loop.
    """

    def __init__(self, loop: BareLoop, requests: list[RolloutRequest]):
        self.with_machinery: list[NDArray[np.float64]] = []
        self.bare: list[NDArray[np.float64]] = []
        self._loop = loop
        self._requests = requests
        self._since = clocks()

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        """Let `train` go on."""

    def on_update(self, record: UpdateRecord) -> None:
        """Note what the batch took, its learning apart; then run the other one."""
        before = clocks()
        self.with_machinery.append(before - self._since - record.report.learn_s)  # one busy thread: both clocks
        self._loop.run(record.weights, self._requests)
        self._since = clocks()
        self.bare.append(self._since - before)


def measure(options: Options) -> Turns:
    """Run both in turns; the first batch of each, which builds the environments, does not count."""
    parts = Components(
        build_policy=functools.partial(TimedPolicy, chunk_length=CHUNK_LENGTH),
        make_environment=functools.partial(
            make_timed, group_s=options.group_s, group_size=options.group_size, num_steps=NUM_STEPS, at_work=True
        ),
        max_steps=NUM_STEPS,
        ppo=PPO(num_iterations=1, minibatch_rollouts=options.batch_groups * options.group_size),
        seed=0,
        learner_threads=1,
    )
    sampling = Sampling(group_size=options.group_size, batch_rollouts=options.batch_groups * options.group_size)
    cluster = Cluster(num_actors=options.num_actors, cpus_per_actor=0.01)
    with open_runtime(parts, cluster) as runtime:
        requests = timed_requests(options.batch_groups, group_size=options.group_size)
        turns = Turns(BareLoop(parts, options.num_actors), requests)
        train(
            runtime,
            timed_stream(),
            sampling=sampling,
            num_updates=1 + options.num_batches,
            seed=0,
            callbacks=[turns],
        )
    turns.with_machinery, turns.bare = turns.with_machinery[1:], turns.bare[1:]
    return turns


def main(options: Options) -> None:
    """Measure and print."""
    turns = measure(options)
    rows = []
    for clock, name in enumerate(("wall clock", "processor time")):
        ours, bare = (np.array(batches)[:, clock] for batches in (turns.with_machinery, turns.bare))
        low, median, high = spread(ours / bare)
        rows.append(
            (
                name,
                *(f"{batches.sum() / options.num_batches / options.batch_groups:.4f}" for batches in (bare, ours)),
                f"{ours.sum() / bare.sum() - 1:+.1%}",
                f"{median - 1:+.1%}",
                f"{low - 1:+.1%} to {high - 1:+.1%}",
            )
        )
    title = f"{options.num_batches} batches of {options.batch_groups} groups of {options.group_s:g} s in turns"
    columns = ("seconds per group", "bare", "with", "overhead", "median", "quartiles")
    print_table(title, columns, rows)


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    with local_ray():
        main(chosen)
