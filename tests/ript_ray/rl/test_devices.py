"""Actors and learner on a device. A stand-in shows, on any machine, what would be left behind on the CPU."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ript_ray.config.rl import Sampling
from ript_ray.errors import ConfigError
from ript_ray.policies.base import Decisions, Policy
from ript_ray.policies.quest.policy import QuestPolicy
from ript_ray.rl.device import move_policy
from ript_ray.rl.learner import Learner, UpdateReport
from ript_ray.rl.rollout_worker import RolloutWorker
from ript_ray.rl.train import group_request
from ript_ray.types import Arrays, Group, Version
from tests.conftest import TINY_QUEST, line_parts, line_stream
from tests.fakes import LineEnvironment, TinyChunkPolicy
from tests.stand_in_device import STAND_IN, StandInDevice

NUM_GROUPS = 2
REQUESTS = [
    group_request(line_stream(), index, sampling=Sampling(group_size=4, batch_rollouts=4), seed=5)
    for index in range(NUM_GROUPS)
]


def quest(**changes: Any) -> QuestPolicy:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return QuestPolicy(replace(TINY_QUEST, **changes), action_dim=1, state_dims={"state": 2})


POLICIES: dict[str, Callable[[], Policy]] = {
    "gaussian": functools.partial(TinyChunkPolicy, "gaussian"),
    "quest": quest,
    "quest, three candidates": functools.partial(quest, top_k=3, scored_against="candidates"),
    "quest, instructions by number": functools.partial(
        quest, task_input="index", instructions=("go left", "go right"), num_tasks=2
    ),
}


def roll_groups(build: Callable[[], Policy], device: str) -> list[Group]:
    """Roll out groups; an untrained policy fails them all, so successes are made up."""
    worker = RolloutWorker(build, lambda task: LineEnvironment(), 12, device=device)
    groups = []
    for request in REQUESTS:
        rollouts = worker.roll(request)[1].rollouts
        mixed = [replace(rollout, success=row % 2 == 0) for row, rollout in enumerate(rollouts)]
        groups.append(Group(request.index, Version(0), tuple(mixed)))
    return groups


def learn(
    build: Callable[[], Policy], groups: Sequence[Group], device: str, **ppo: Any
) -> tuple[Learner, UpdateReport]:
    parts = line_parts(build, **{"minibatch_rollouts": 3, "recompute_log_probs": True, **ppo})
    learner = Learner(build, parts.ppo, seed=5, num_threads=1, device=device)
    for group in groups:
        learner.receive(group)
    return learner, learner.update(range(NUM_GROUPS))


@pytest.mark.parametrize("kind", POLICIES)
def test_rollouts_and_updates_on_a_device_are_those_of_the_cpu(kind: str) -> None:
    groups = roll_groups(POLICIES[kind], "cpu")
    learner, report = learn(POLICIES[kind], groups, "cpu")
    with StandInDevice():
        their_groups = roll_groups(POLICIES[kind], STAND_IN)
        theirs, their_report = learn(POLICIES[kind], their_groups, STAND_IN)
        weights, state = theirs.weights(), theirs.state()
        again = Learner(POLICIES[kind], line_parts(POLICIES[kind]).ppo, seed=5, num_threads=1, device=STAND_IN)
        again.restore(Version(1), state, weights)
        assert again.weights().checksum == weights.checksum
    assert their_report.error is None
    assert replace(their_report, learn_s=0.0) == replace(report, learn_s=0.0)
    assert weights.checksum == learner.weights().checksum
    for name, array in learner.state().items():
        np.testing.assert_array_equal(state[name], array)
    for group, other in zip(groups, their_groups, strict=True):
        for rollout, their_rollout in zip(group.rollouts, other.rollouts, strict=True):
            np.testing.assert_array_equal(rollout.log_probs_TU, their_rollout.log_probs_TU)
            for name, array in rollout.record.items():
                np.testing.assert_array_equal(array, their_rollout.record[name])


def test_a_policy_that_sees_images_acts_on_a_device() -> None:
    build = functools.partial(quest, cameras=("front",), image_size=16, image_channels=4, image_width=8)
    rng = np.random.default_rng(0)
    observations: Arrays = {
        "front": rng.integers(256, size=(2, 24, 24, 3), dtype=np.uint8),
        "state": rng.standard_normal((2, 2)).astype(np.float32),
    }

    def act(policy: Policy) -> Decisions:
        return policy.act(observations, ["go left", "go right"], [np.random.default_rng(row) for row in range(2)])

    expected = act(build())
    with StandInDevice():
        decisions = act(move_policy(build(), STAND_IN))
    np.testing.assert_array_equal(decisions.actions_BCA, expected.actions_BCA)
    np.testing.assert_array_equal(decisions.log_probs_BU, expected.log_probs_BU)


def test_a_minibatch_is_moved_once_however_many_micro_batches_it_has() -> None:
    groups, moved = roll_groups(POLICIES["gaussian"], "cpu"), []
    for micro_batch_decisions in (None, 1):
        with StandInDevice() as device:
            ppo = {"micro_batch_decisions": micro_batch_decisions, "recompute_log_probs": False}
            learn(POLICIES["gaussian"], groups, STAND_IN, **ppo)
            moved.append(device.num_moved)
    assert moved[0] == moved[1]


class ForgetsToMove(TinyChunkPolicy):
    def act(
        self, observations: Arrays, instructions: Sequence[str], generators: Sequence[np.random.Generator]
    ) -> Decisions:
        self.mean(torch.from_numpy(observations["state"]))
        return super().act(observations, instructions, generators)


class ForgetsToMoveBack(TinyChunkPolicy):
    def act(
        self, observations: Arrays, instructions: Sequence[str], generators: Sequence[np.random.Generator]
    ) -> Decisions:
        self.log_scale.detach().numpy()
        return super().act(observations, instructions, generators)


@pytest.mark.parametrize(
    ("policy", "error", "message"),
    [(ForgetsToMove, RuntimeError, "same device"), (ForgetsToMoveBack, TypeError, "to numpy")],
)
def test_the_stand_in_finds_what_a_gpu_would(
    policy: type[TinyChunkPolicy], error: type[Exception], message: str
) -> None:
    with StandInDevice(), pytest.raises(error, match=message):
        roll_groups(functools.partial(policy, "gaussian"), STAND_IN)


def test_a_gpu_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match=r"cluster\.gpus-per-actor, .* finds no GPU in this process"):
        move_policy(TinyChunkPolicy("gaussian"), "cuda")
