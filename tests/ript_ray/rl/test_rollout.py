from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch

from ript_envs.contract import Environment
from ript_ray.policies.base import Decisions, Policy
from ript_ray.policies.state_dict import ModulePolicy
from ript_ray.rl.rollout import EnvironmentPool, roll_out
from ript_ray.types import Arrays, Context, Group, RolloutRequest, Version
from tests.conftest import tiny_quest
from tests.fakes import LineBenchmark, LineEnvironment, TinyChunkPolicy

CONTEXT = Context("right", "go right", (0.0, 0.9))


class NoisyWalker(ModulePolicy):
    """Walks right at a random speed and records the batch sizes of its queries."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_sizes: list[int] = []

    def act(
        self, observations: Arrays, instructions: Sequence[str], generators: Sequence[np.random.Generator]
    ) -> Decisions:
        rows = len(instructions)
        self.batch_sizes.append(rows)
        speeds = np.array([generator.uniform(-0.5, 1) for generator in generators], np.float32)
        actions = np.repeat(speeds[:, None], 2, axis=1)[..., None]
        return Decisions(actions, {"speed": speeds}, np.zeros((rows, 1), np.float32), np.ones((rows, 1), np.bool_))

    def log_probs(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        raise NotImplementedError


class Closable(LineEnvironment):
    """Knows its task and whether it is open; closing it fails if told so."""

    def __init__(self, task: str) -> None:
        super().__init__()
        self.task = task
        self.is_open = True
        self.closing_fails = False

    def close(self) -> None:
        super().close()
        self.is_open = False
        if self.closing_fails:
            raise RuntimeError("the simulator is stuck")


class CountingPool(EnvironmentPool):
    def __init__(self, **limits: int) -> None:
        self.built: list[Closable] = []
        super().__init__(self._build, **limits)

    def _build(self, task: str) -> Environment:
        environment = Closable(task)
        self.built.append(environment)
        return environment

    def open_tasks(self) -> Counter[str]:
        return Counter(environment.task for environment in self.built if environment.is_open)


def request(num_rollouts: int, first_seed: int = 0) -> RolloutRequest:
    seeds = tuple((first_seed + member,) for member in range(num_rollouts))
    return RolloutRequest(0, (CONTEXT,) * num_rollouts, seeds)


def run(num_rollouts: int, max_steps: int = 12, first_seed: int = 0) -> tuple[Group, NoisyWalker, CountingPool]:
    policy, pool = NoisyWalker(), CountingPool()
    group = roll_out(request(num_rollouts, first_seed), policy, pool, max_steps=max_steps, version=Version(3))
    return group, policy, pool


def test_finished_episodes_are_neither_stepped_observed_nor_queried() -> None:
    group, policy, pool = run(8)  # the environment refuses to be stepped or observed once solved
    lengths = [len(rollout.log_probs_TU) for rollout in group.rollouts]
    assert len(set(lengths)) > 1, "the example must hold episodes of different lengths"
    assert policy.batch_sizes == [sum(length > query for length in lengths) for query in range(max(lengths))]
    for rollout, environment in zip(group.rollouts, pool.built, strict=True):
        assert environment.num_steps == rollout.num_steps
        assert environment.num_observations == len(rollout.log_probs_TU)


def test_an_episode_ends_at_success_or_at_the_horizon_even_inside_a_chunk() -> None:
    group, _, _ = run(8, max_steps=5)
    assert all(rollout.success or rollout.num_steps == 5 for rollout in group.rollouts)
    assert {rollout.success for rollout in group.rollouts} == {False}
    group, _, _ = run(8)
    assert {rollout.success for rollout in group.rollouts} == {True, False}


def test_a_rollouts_randomness_does_not_depend_on_its_neighbours() -> None:
    together, _, _ = run(6)
    for member, rollout in enumerate(together.rollouts):
        alone, _, _ = run(1, first_seed=member)
        assert alone.rollouts[0].num_steps == rollout.num_steps
        np.testing.assert_array_equal(alone.rollouts[0].record["speed"], rollout.record["speed"])


def test_environments_are_reused_and_never_shared_within_a_request() -> None:
    pool, policy = CountingPool(), NoisyWalker()
    first = roll_out(request(4), policy, pool, max_steps=12, version=Version(0))
    again = roll_out(request(4), policy, pool, max_steps=12, version=Version(0))
    assert len(pool.built) == 4
    assert [rollout.num_steps for rollout in first.rollouts] == [rollout.num_steps for rollout in again.rollouts]
    assert len({id(environment) for environment in pool.take(["right"] * 4)}) == 4


def test_the_environments_of_the_least_recently_used_task_are_closed_first() -> None:
    pool = CountingPool(max_environments=6)
    for task in "abca":
        pool.take([task] * 2)
    assert pool.open_tasks() == {"a": 2, "b": 2, "c": 2}
    pool.take(["d"] * 2)
    assert pool.open_tasks() == {"a": 2, "c": 2, "d": 2}, "b was not used since c and a were"
    pool.take(["a"] * 3)
    assert pool.open_tasks() == {"a": 3, "c": 1, "d": 2}, "no more are closed than the bound requires"
    assert len(pool.built) == 9


def test_a_bound_on_tasks_closes_all_environments_of_the_least_recently_used_one() -> None:
    pool = CountingPool(max_tasks=2)
    for task in "aba":
        pool.take([task] * 2)
    pool.take(["c"])
    assert pool.open_tasks() == {"a": 2, "c": 1}, "b was not used since a was"
    pool.take(["a", "b", "c"])
    assert pool.open_tasks() == {"a": 1, "b": 1, "c": 1}, "a request gets what it needs, and no more"
    pool.take(["b"])
    assert pool.open_tasks() == {"b": 1, "c": 1}


def test_a_request_above_the_bound_gets_its_environments_and_the_next_one_returns_to_the_bound() -> None:
    pool = CountingPool(max_environments=3)
    assert len({id(environment) for environment in pool.take(["a"] * 5 + ["b"])}) == 6
    assert pool.open_tasks() == {"a": 5, "b": 1}
    kept = pool.take(["a"] * 2)
    assert pool.open_tasks() == {"a": 3}
    assert all(environment.is_open for environment in kept if isinstance(environment, Closable))


def test_rollouts_do_not_depend_on_the_bound() -> None:
    tasks = ["left", "right", "left", "right"]
    contexts = [Context(task, task, (0.0, 0.9 if task == "right" else -0.9)) for task in tasks]
    requests = [RolloutRequest(0, (context,) * 4, tuple((seed,) for seed in range(4))) for context in contexts]
    lengths = []
    for pool in (CountingPool(), CountingPool(max_environments=1)):
        groups = [roll_out(request, NoisyWalker(), pool, max_steps=12, version=Version(0)) for request in requests]
        lengths.append([rollout.num_steps for group in groups for rollout in group.rollouts])
        assert len(pool.built) == (8 if len(lengths) == 1 else 16)
    assert lengths[0] == lengths[1]


def test_an_environment_that_cannot_be_closed_keeps_no_other_one_open(caplog: pytest.LogCaptureFixture) -> None:
    pool = CountingPool(max_environments=2)
    pool.take(["a"] * 2)
    for environment in pool.built:
        environment.closing_fails = True
    pool.take(["b"] * 2)
    assert caplog.messages == ["an environment of task a was not closed: RuntimeError: the simulator is stuck"] * 2
    assert pool.open_tasks() == {"b": 2}
    pool.built[2].closing_fails = True
    with pytest.raises(RuntimeError, match="the simulator is stuck"):
        pool.close()
    assert pool.open_tasks() == {}


def test_evaluation_keeps_no_record() -> None:
    quiet = RolloutRequest(0, (CONTEXT,) * 2, ((0,), (1,)), keep_record=False)
    group = roll_out(quiet, NoisyWalker(), CountingPool(), max_steps=12, version=Version(0))
    assert all(rollout.record == {} and rollout.log_probs_TU.size == 0 for rollout in group.rollouts)


def test_a_group_carries_its_index_and_the_version_of_its_policy() -> None:
    group, _, _ = run(2)
    assert (group.index, group.version) == (0, 3)


@pytest.mark.parametrize("build", [tiny_quest, lambda: TinyChunkPolicy("laplace")])
def test_both_kinds_of_policy_score_their_rollouts_as_they_acted(build: Callable[[], Policy]) -> None:
    policy = build()
    pool = EnvironmentPool(LineBenchmark().make)
    group = roll_out(request(4), policy, pool, max_steps=12, version=Version(0))
    for rollout in group.rollouts:
        record = {name: torch.from_numpy(array) for name, array in rollout.record.items()}
        scored = policy.log_probs(record)
        np.testing.assert_allclose(scored.detach().numpy(), rollout.log_probs_TU, atol=1e-5)
