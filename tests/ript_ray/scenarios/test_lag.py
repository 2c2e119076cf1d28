"""Bounded staleness: rollouts overlap with learning, and no group exceeds the maximum lag, whatever the timing."""

import functools
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from ript_ray.config.rl import Sampling
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.learner import UpdateReport
from ript_ray.rl.protocols import Components, DispatchCounts, Rerun
from ript_ray.rl.train import train
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.ray_runtime import RayRuntime
from ript_ray.runtime.serial import SerialRuntime
from ript_ray.types import Group, GroupSummary, RolloutRequest
from tests.conftest import line_parts, line_stream, start_ray
from tests.fakes import LineEnvironment, TinyChunkPolicy
from tests.faulty import is_first
from tests.ript_ray.runtime.test_runtimes import POLICIES, SAMPLING, START_TIMEOUT_S, Log, checksums

Choose = Callable[[list[int], bool], int | None]
"""Given the finished groups and whether an update has finished too, return the group to deliver; None: the update."""


def in_order(finished: list[int], has_update: bool) -> int | None:
    return None if has_update else finished[0]


def newest_first(finished: list[int], has_update: bool) -> int | None:
    return finished[-1] if finished else None


def oldest_last_and_learner_first(finished: list[int], has_update: bool) -> int | None:
    return None if has_update else finished[-1]


def at_random(seed: int) -> Choose:
    generator = random.Random(seed)
    return lambda finished, has_update: generator.choice([*finished, *([None] if has_update else [])])


ADVERSARIES = {
    "in order": in_order,
    "newest first": newest_first,
    "oldest last": oldest_last_and_learner_first,
    **{f"random {seed}": at_random(seed) for seed in range(5)},
}


class AdversarialRuntime(SerialRuntime):
    """Executes every request at once with the current policy, and delivers results in an adversary's order."""

    def __init__(self, parts: Components, choose: Choose):
        super().__init__(parts)
        self._choose = choose
        self._made: dict[int, tuple[GroupSummary, Group]] = {}
        self._versions: dict[int, int] = {}
        self.ages: list[int] = []
        self.trained: list[int] = []

    def launch(self, request: RolloutRequest) -> None:
        self._num_dispatched += 1
        self._made[request.index] = made = self._worker.roll(request)
        self._versions[request.index] = made[0].version

    @property
    def dispatch_counts(self) -> DispatchCounts:
        return replace(super().dispatch_counts, num_running=len(self._made))

    def start_update(self, indices: Sequence[int]) -> Sequence[Rerun]:
        self.trained += indices
        self.ages += [self._learner.weights().version - self._versions[index] for index in indices]
        return super().start_update(indices)

    def next_event(self) -> GroupSummary | UpdateReport:
        index = self._choose(sorted(self._made), self._batch is not None)
        if index is None:
            return super().next_event()
        summary, group = self._made.pop(index)
        self._finished[index] = [group]
        return summary


@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_no_group_is_older_than_the_bound_and_none_is_trained_twice(adversary: str, lag: int) -> None:
    runtime = AdversarialRuntime(line_parts(POLICIES["laplace"]), ADVERSARIES[adversary])
    log = Log()
    sampling = replace(SAMPLING, max_policy_lag=lag)
    train(runtime, line_stream(), sampling=sampling, num_updates=8, seed=5, callbacks=[log])
    assert max(runtime.ages) <= lag
    assert runtime.trained == sorted(set(runtime.trained)), "a group was trained twice, or overtook another"
    for update, record in enumerate(log.records, start=1):
        assert record.ledger.trained == 4 * update
        assert record.ledger.in_flight <= (lag + 1) * 4
    last = log.records[-1].ledger
    assert (last.in_flight, last.lost, last.stale, last.invalid) == (0, 0, 0, 0)


class ScriptedRuntime(AdversarialRuntime):
    """The first `num_mixed` groups are mixed, all others uniform successes."""

    num_mixed = 1000

    def launch(self, request: RolloutRequest) -> None:
        super().launch(request)
        summary, group = self._made[request.index]
        successes = (1.0, 0.0, 1.0, 0.0) if request.index < self.num_mixed else (1.0,) * 4
        self._made[request.index] = replace(summary, successes=successes), group


@pytest.mark.parametrize("lag", [1, 3])
def test_the_bound_is_reached_if_no_group_is_rejected(lag: int) -> None:
    runtime = ScriptedRuntime(line_parts(POLICIES["laplace"]), in_order)
    train(runtime, line_stream(), sampling=replace(SAMPLING, max_policy_lag=lag), num_updates=8, seed=5)
    assert max(runtime.ages) == lag


def test_at_lag_0_no_adversary_changes_a_bit() -> None:
    def weights(adversary: Choose) -> list[str]:
        log = Log()
        runtime = AdversarialRuntime(line_parts(POLICIES["laplace"]), adversary)
        train(runtime, line_stream(), sampling=SAMPLING, num_updates=4, seed=5, callbacks=[log])
        return checksums(log)

    assert len({tuple(weights(adversary)) for adversary in ADVERSARIES.values()}) == 1


@pytest.mark.parametrize("lag", [1, 2])
def test_a_policy_learns_from_groups_at_the_maximum_lag(lag: int) -> None:
    parts = line_parts(POLICIES["laplace"], num_iterations=4, learning_rate=3e-3)
    sampling = Sampling(group_size=8, batch_rollouts=64, max_policy_lag=lag)
    log = Log()
    train(AdversarialRuntime(parts, in_order), line_stream(), sampling=sampling, num_updates=8, seed=5, callbacks=[log])
    rates = [record.stats.success_rate for record in log.records]
    assert rates[-1] > rates[0] + 0.3, rates


def test_an_exhausted_search_trains_the_full_batches_that_remain() -> None:
    log = Log()
    runtime = ScriptedRuntime(line_parts(POLICIES["laplace"]), newest_first)
    runtime.num_mixed = 6
    sampling = replace(SAMPLING, max_policy_lag=1, max_uniform_groups=5)
    outcome = train(runtime, line_stream(), sampling=sampling, num_updates=5, seed=5, callbacks=[log])
    assert outcome.exhausted is not None
    assert "every context drawn is solved (5 groups" in str(outcome.exhausted)
    assert runtime.trained == [0, 1, 2, 3]
    assert not runtime._made
    assert outcome.last is not None
    assert outcome.last.verdicts[Verdict.ACCEPTED] + log.records[0].stats.verdicts[Verdict.ACCEPTED] == 6


class SlowToLearn(TinyChunkPolicy):
    """A learner as slow as the rollouts."""

    def log_probs(self, record):
        time.sleep(0.05)
        return super().log_probs(record)


class WatchedRayRuntime(RayRuntime):
    """Records the age of each trained group."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._versions: dict[int, int] = {}
        self.num_updates = 0
        self.ages: list[int] = []

    def next_event(self):
        event = super().next_event()
        if isinstance(event, GroupSummary):
            self._versions[event.index] = event.version
        else:
            self.num_updates += 1
        return event

    def start_update(self, indices):
        self.ages += [self.num_updates - self._versions[index] for index in indices]
        return super().start_update(indices)


class DyingEnvironment(LineEnvironment):
    """Kills its process in the middle of a group: one process early in the run, and one later."""

    def __init__(self, marks: Path):
        super().__init__()
        self._marks = marks

    def step(self, action):
        if self.num_steps in (20, 200) and is_first(self._marks / str(self.num_steps)):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


@pytest.mark.ray
def test_on_ray_rollouts_overlap_with_learning_within_the_bound_though_actors_die(tmp_path: Path) -> None:
    start_ray(num_cpus=2)
    runtime = None
    try:
        parts = line_parts(functools.partial(SlowToLearn, "laplace"), minibatch_rollouts=4)
        parts = replace(parts, make_environment=lambda task: DyingEnvironment(tmp_path))
        runtime = WatchedRayRuntime(parts, Cluster(num_actors=2, cpus_per_actor=0.5, start_timeout_s=START_TIMEOUT_S))
        log = Log()
        sampling = replace(SAMPLING, max_policy_lag=1)
        train(runtime, line_stream(), sampling=sampling, num_updates=4, seed=5, callbacks=[log])
        assert max(runtime.ages) == 1
        assert runtime.dispatch_counts.num_replaced >= 1
        for update, record in enumerate(log.records, start=1):
            assert record.ledger.trained == 4 * update
        assert log.records[-1].ledger.in_flight == 0
    finally:
        if runtime:
            runtime.close()
        ray.shutdown()
