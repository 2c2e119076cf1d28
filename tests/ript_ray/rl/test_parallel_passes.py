"""Passes at the same time: they are, and the bits do not depend on which is done first."""

import threading
import time
from collections.abc import Mapping

import pytest
import torch
from torch import nn

from ript_ray.config.rl import PPO
from ript_ray.rl.learner import Learner
from ript_ray.rl.parallel_passes import ParallelPasses
from tests.fakes import TinyChunkPolicy
from tests.ript_ray.rl.test_learner_oracle import make_groups
from tests.stand_in_device import STAND_IN, StandInDevice

GROUPS = make_groups(TinyChunkPolicy("laplace"), 3)
NUM_DECISIONS = sum(len(rollout.log_probs_TU) for group in GROUPS for rollout in group.rollouts)
TIMEOUT_S = 60


class WaitingPolicy(TinyChunkPolicy):
    """Goes on with a pass only when as many have begun as there are to be at the same time; the first ends last."""

    def __init__(self, num_passes: int, *, first_is_slow: bool = False) -> None:
        super().__init__("laplace")
        self.num_decisions: list[int] = []
        self._meeting = threading.Barrier(num_passes)
        self._first_is_slow = first_is_slow

    def log_probs(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        self.num_decisions.append(len(record["state"]))
        place = self._meeting.wait(TIMEOUT_S)
        if self._first_is_slow == (place == 0):
            time.sleep(0.02)
        return super().log_probs(record)


def updated(policy: TinyChunkPolicy, parallel_passes: int, device: str = "cpu") -> str:
    """The checksum of the weights after an update."""
    ppo = PPO(
        num_iterations=3,
        minibatch_rollouts=4,
        learning_rate=1e-2,
        micro_batch_decisions=40,
        parallel_passes=parallel_passes,
    )
    learner = Learner(lambda: policy, ppo, seed=5, num_threads=1, device=device)
    for group in GROUPS:
        learner.receive(group)
    assert learner.update(range(len(GROUPS))).error is None
    return learner.checksum()


@pytest.mark.parametrize("number", [2, 3])
def test_equal_parts_are_computed_at_the_same_time_and_the_bits_do_not_depend_on_the_order(number: int) -> None:
    checksums = set()
    for first_is_slow in (False, True):
        policy = WaitingPolicy(number, first_is_slow=first_is_slow)
        checksums.add(updated(policy, number))
        assert sum(policy.num_decisions) == 3 * NUM_DECISIONS
    assert len(checksums) == 1


def test_on_a_gpu_there_is_one_pass_at_a_time() -> None:
    alone = updated(TinyChunkPolicy("laplace"), 1)
    with StandInDevice():
        assert updated(TinyChunkPolicy("laplace"), 3, STAND_IN) == alone


def test_gradients_are_added_even_where_parameters_share_one_or_have_none() -> None:
    first, second, unused = (nn.Parameter(torch.full((2,), value)) for value in (1.0, 2.0, 3.0))
    passes = [
        lambda factor=factor: ((factor * (first + second)).sum(), torch.tensor([factor, 1.0])) for factor in (3.0, 4.0)
    ]
    for number in (1, 2):
        for parameter in (first, second, unused):
            parameter.grad = None
        total = ParallelPasses(2, num_threads=1).run(passes[:number], [first, second, unused])
        assert total.tolist() == [sum((3.0, 4.0)[:number]), number]
        assert first.grad is not None
        first.grad.zero_()
        assert second.grad is not None
        assert second.grad.tolist() == [sum((3.0, 4.0)[:number])] * 2
        assert unused.grad is None


def test_an_error_in_a_pass_is_that_of_the_update() -> None:
    class BrokenPolicy(TinyChunkPolicy):
        def log_probs(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
            raise ValueError("no log-probabilities today")

    with pytest.raises(ValueError, match="no log-probabilities today"):
        updated(BrokenPolicy("laplace"), 2)
