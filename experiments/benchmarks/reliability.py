"""What does fault tolerance cost?

Question: how much slower are rollouts with timeouts, ledger, validation, summaries, checksums and speculative execution
    of stragglers than in a loop without any of them?
Method: the same rollouts, alternating batch by batch: inside `train` on the Ray runtime, then in a bare loop with the
    same number of actors and `ray.wait` around the same `roll_out`, which puts weights into the object store, lets
    actors copy them, and passes groups on by reference, without timeouts, checks or bookkeeping. Groups use a fixed
    amount of processor time and resemble the quickstart's in size and number of queries. Both are compared batch by
    batch in wall-clock time (what a user waits for; other processes disturb it) and over all batches in processor time
    of this process and all of Ray's (what the machinery costs; other processes hardly matter). Learning is not counted.
Expected: at most 2 % overhead for groups of 0.2 s.
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

from experiments.benchmarks.timed import (
    TimedPolicy,
    local_ray,
    make_timed,
    print_table,
    spread,
    timed_requests,
    timed_stream,
)
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
    """Sizes of the benchmark.

    Attributes:
        group_s: Processor time per group, in seconds.
        group_size: Rollouts per group, even.
        num_actors: Rollout actors, in either loop.
        batch_groups: Groups per batch.
        num_batches: Batches measured, in either loop.
    """

    group_s: float = 0.2
    group_size: int = 8
    num_actors: int = 2
    batch_groups: int = 20
    num_batches: int = 30


class BareWorker(RolloutWorker):
    """Rollout worker without validation, summaries and checksums."""

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
        """Run the episodes of a request."""
        torch.set_num_threads(1)
        return roll_out(
            request, self._policy, self._environments[0].pool, max_steps=self._max_steps, version=self._version
        )


class Sink:
    """Receiver of the bare loop's groups, in place of the learner."""

    def receive(self, group: Group) -> None:
        """Discard a group."""


class BareLoop:
    """The minimum that rollouts on Ray need."""

    def __init__(self, parts: Components, num_actors: int):
        worker_class = ray.remote(num_cpus=0, **NO_TASK_EVENTS)(BareWorker)
        arguments = (parts.build_policy, parts.make_environment, parts.max_steps)
        self._actors = [worker_class.remote(*arguments) for _ in range(num_actors)]
        self._sink = ray.remote(num_cpus=0, **NO_TASK_EVENTS)(Sink).remote()
        ray.get([actor.__ray_ready__.remote() for actor in self._actors], timeout=600)

    def run(self, weights: Weights, requests: list[RolloutRequest]) -> None:
        """Broadcast weights and run requests."""
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
    """Return wall-clock time and the processor time of this process and its children (all of Ray's), in seconds."""
    driver = psutil.Process()
    used = [process.cpu_times() for process in (driver, *driver.children(recursive=True))]
    return np.array([time.perf_counter(), sum(times.user + times.system for times in used)])


class AlternatingLoops:
    """Callback that runs one batch in the bare loop after every batch in `train`.

    Attributes:
        fault_tolerant: Wall-clock and processor time of each batch in `train`, in seconds.
        bare: The same for each batch in the bare loop.
    """

    def __init__(self, loop: BareLoop, requests: list[RolloutRequest]):
        self.fault_tolerant: list[NDArray[np.float64]] = []
        self.bare: list[NDArray[np.float64]] = []
        self._loop = loop
        self._requests = requests
        self._since = clocks()

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        """Do nothing."""

    def on_update(self, record: UpdateRecord) -> None:
        """Record the time of the batch without learning, then run the bare loop."""
        before = clocks()
        self.fault_tolerant.append(before - self._since - record.report.learn_s)  # one busy thread: both clocks
        self._loop.run(record.weights, self._requests)
        self._since = clocks()
        self.bare.append(self._since - before)


def measure(options: Options) -> AlternatingLoops:
    """Run both loops; the first batch of each, which builds the environments, is not counted."""
    parts = Components(
        build_policy=functools.partial(TimedPolicy, chunk_length=CHUNK_LENGTH),
        make_environment=functools.partial(
            make_timed, group_s=options.group_s, group_size=options.group_size, num_steps=NUM_STEPS, is_busy=True
        ),
        max_steps=NUM_STEPS,
        ppo=PPO(num_iterations=1, minibatch_rollouts=options.batch_groups * options.group_size),
        seed=0,
        learner_threads=1,
    )
    sampling = Sampling(group_size=options.group_size, batch_rollouts=options.batch_groups * options.group_size)
    cluster = Cluster(num_actors=options.num_actors, cpus_per_actor=0.01, start_timeout_s=600)
    with open_runtime(parts, cluster) as runtime:
        requests = timed_requests(options.batch_groups, group_size=options.group_size)
        loops = AlternatingLoops(BareLoop(parts, options.num_actors), requests)
        train(
            runtime,
            timed_stream(),
            sampling=sampling,
            num_updates=1 + options.num_batches,
            seed=0,
            callbacks=[loops],
        )
    loops.fault_tolerant, loops.bare = loops.fault_tolerant[1:], loops.bare[1:]
    return loops


def main(options: Options) -> None:
    """Run the benchmark and print the table."""
    loops = measure(options)
    rows = []
    for clock, name in enumerate(("wall clock", "processor time")):
        ours, bare = (np.array(batches)[:, clock] for batches in (loops.fault_tolerant, loops.bare))
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
    title = f"{options.num_batches} batches of {options.batch_groups} groups of {options.group_s:g} s in either loop"
    columns = ("seconds per group", "bare", "train", "overhead", "median", "quartiles")
    print_table(title, columns, rows)


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    with local_ray():
        main(chosen)
