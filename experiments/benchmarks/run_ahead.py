"""How much sooner is a batch collected if idle actors run later groups ahead of need?

Question: how long does collecting a batch take, and how busy are the actors, with `cluster.run_ahead` at 0 and at its
    default, for 8 to 1,000 rollout actors; and what does splitting groups (`sampling.rollouts_per_request`) add?
Method: simulation in which the real `GroupBuffer`, `RunAhead` and `split` decide and only time is simulated. A group's
    rollouts succeed with one probability, which is 0 or 1 for the uniform share of the contexts; a success takes 80 to
    200 environment steps, a failure 500, as in ML45; the rollouts of a request run one after the other. One update at
    lag 0, mean of several seeds.
Expected: the same batches. No gain while there are far more groups than actors, a factor of 2 to 3 once the actors
    outnumber the groups of a batch. What is run in vain takes time of actors that would have idled.
"""

import heapq
from dataclasses import dataclass, replace

import numpy as np
import tyro

from experiments.benchmarks.timed import print_table
from ript_ray.config.rl import Sampling
from ript_ray.rl.group_buffer import GroupBuffer
from ript_ray.rl.parts import PartialGroups
from ript_ray.runtime.run_ahead import RunAhead
from ript_ray.types import Context, GroupSummary, RolloutRequest, Version

CONTEXT = Context("simulated", "", ())
FAILURE_STEPS = 500


@dataclass(frozen=True)
class Options:
    """Sizes of the simulation.

    Attributes:
        actors: Numbers of rollout actors.
        mixed: Shares of contexts whose rollouts may differ.
        groups_per_update: Groups of a batch.
        group_size: Rollouts of a group.
        rollouts_per_request: Size of the parts in the last column.
        num_seeds: Simulated batches, of which the mean is shown.
    """

    actors: tuple[int, ...] = (8, 32, 128, 256, 1000)
    mixed: tuple[float, ...] = (0.9, 0.5)
    groups_per_update: int = 180
    group_size: int = 16
    rollouts_per_request: int = 4
    num_seeds: int = 5


@dataclass(frozen=True)
class Collection:
    """How one batch was collected.

    Attributes:
        batch: Indices of its groups.
        steps: Time, in environment steps of one actor.
        useful: Share of the actors' time spent on groups that the batch needed, rejected ones included.
        in_vain: Share of their time spent on others.
    """

    batch: tuple[int, ...]
    steps: float
    useful: float
    in_vain: float


class Simulation:
    """Actors that take simulated time."""

    def __init__(self, sampling: Sampling, *, num_actors: int, limit: int, mixed: float, seed: int):
        """Prepare a batch.

        Args:
            sampling: Sizes.
            num_actors: Rollout actors.
            limit: Groups that may run ahead.
            mixed: Share of contexts whose rollouts may differ.
            seed: Seed of all outcomes.
        """
        self._sampling, self._num_actors, self._mixed, self._seed = sampling, num_actors, mixed, seed
        self._buffer = GroupBuffer(sampling, num_updates=1)
        self._ahead, self._partial = RunAhead(limit), PartialGroups[None]()
        self._queue: list[RolloutRequest] = []
        self._events: list[tuple[float, int, GroupSummary]] = []
        self._busy: dict[int, float] = {}

    def collect(self) -> Collection:
        """Collect one batch."""
        now = 0.0
        while not self._buffer.ready:
            self._launch()
            self._dispatch(now)
            now, _, summary = heapq.heappop(self._events)
            if complete := self._partial.add(summary, None):
                self._ahead.finish((complete[0], ()))
            while finished := self._ahead.next_launched():
                self._buffer.offer(finished[0])
        batch = tuple(self._buffer.take_batch())
        for end, _, summary in self._events:  # cancelled
            self._busy[summary.index] -= end - now
        needed = sum(busy for index, busy in self._busy.items() if index <= batch[-1])
        total = now * self._num_actors
        return Collection(batch, now, needed / total, (sum(self._busy.values()) - needed) / total)

    def _launch(self) -> None:
        while self._buffer.num_wanted > 0:
            self._queue += self._ahead.launch(self._request(self._buffer.launch()))
        if self._buffer.is_searching:
            self._ahead.start(self._request, self._buffer.next_index)

    def _dispatch(self, now: float) -> None:
        while len(self._events) < self._num_actors:
            request = self._queue.pop(0) if self._queue else self._ahead.next_request()
            if request is None:
                return
            successes, steps = self._outcome(request)
            summary = GroupSummary(
                request.index, Version(0), successes, steps, 0, num_parts=request.num_parts, part=request.part
            )
            end = now + sum(steps)
            self._busy[request.index] = self._busy.get(request.index, 0.0) + sum(steps)
            heapq.heappush(self._events, (end, request.index * request.num_parts + request.part, summary))

    def _request(self, index: int) -> RolloutRequest:
        size = self._sampling.group_size
        seeds = tuple((index, member) for member in range(size))
        return RolloutRequest(index, (CONTEXT,) * size, seeds, num_parts=self._sampling.requests_per_group)

    def _outcome(self, request: RolloutRequest) -> tuple[tuple[float, ...], tuple[int, ...]]:
        context = np.random.default_rng((self._seed, request.index))
        rate = context.uniform(0.2, 0.8) if context.random() < self._mixed else float(context.random() < 0.5)
        successes, steps = [], []
        for seed in request.seeds:
            episode = np.random.default_rng((self._seed, *seed))
            successes.append(float(episode.random() < rate))
            steps.append(int(episode.integers(80, 200)) if successes[-1] else FAILURE_STEPS)
        return tuple(successes), tuple(steps)


def measure(options: Options, num_actors: int, mixed: float) -> tuple[list[Collection], ...]:
    """Simulate batches in strict order, with groups run ahead, and with these split into parts."""
    whole = Sampling(options.group_size, options.groups_per_update * options.group_size)
    split = replace(whole, rollouts_per_request=options.rollouts_per_request)
    return tuple(
        [
            Simulation(sampling, num_actors=num_actors, limit=limit, mixed=mixed, seed=seed).collect()
            for seed in range(options.num_seeds)
        ]
        for sampling, limit in ((whole, 0), (whole, num_actors), (split, num_actors))
    )


def main(options: Options) -> None:
    """Run the simulation and print the table."""
    rows = []
    for mixed in options.mixed:
        for num_actors in options.actors:
            strict, ahead, split = measure(options, num_actors, mixed)
            assert [one.batch for one in strict] == [one.batch for one in ahead] == [one.batch for one in split]
            steps = [float(np.mean([one.steps for one in each])) for each in (strict, ahead, split)]
            rows.append(
                (
                    f"{mixed:.0%}",
                    str(num_actors),
                    f"{steps[0] / 1000:.1f}",
                    f"{np.mean([one.useful for one in strict]):.0%}",
                    f"{steps[1] / 1000:.1f}",
                    f"{np.mean([one.useful for one in ahead]):.0%}",
                    f"{np.mean([one.in_vain for one in ahead]):.0%}",
                    f"{steps[0] / steps[1]:.2f}",
                    f"{steps[0] / steps[2]:.2f}",
                )
            )
    title = f"{options.groups_per_update} groups of {options.group_size}; time in 1,000 environment steps"
    columns = ("mixed", "actors", "strict", "busy", "ahead", "busy", "in vain", "gain", "split")
    print_table(title, columns, rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
