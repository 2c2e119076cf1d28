"""What no trained parameter changes is computed once per update, within its memory; no weight depends on that."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from ript_ray.config.rl import PPO
from ript_ray.errors import ConfigError
from ript_ray.policies.base import EncodingPolicy
from ript_ray.rl.learner import Learner
from tests.fakes import TinyChunkPolicy
from tests.ript_ray.rl.test_learner import poisoned
from tests.ript_ray.rl.test_learner_oracle import make_groups
from tests.stand_in_device import STAND_IN, StandInDevice

NUM_ITERATIONS, ROW_BYTES = 3, 8


class DoublingPolicy(TinyChunkPolicy):
    """Reads twice the state, an encoding that is exact, so its bits do not depend on what it is computed with."""

    def __init__(self) -> None:
        super().__init__("laplace")
        self.num_encoded: list[int] = []

    def encode(self, record: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.num_encoded.append(len(record["state"]))
        return {"doubled": 2 * record["state"]}

    def log_probs(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        doubled = (record if "doubled" in record else self.encode(record))["doubled"]
        return self._at(doubled).log_prob(record["chunk"])


GROUPS = make_groups(TinyChunkPolicy("laplace"), 3)
NUM_DECISIONS = sum(len(rollout.log_probs_TU) for group in GROUPS for rollout in group.rollouts)


def updated(*, device: str = "cpu", **ppo: Any) -> tuple[Learner, list[int]]:
    """A learner after an update, and how many decisions its policy encoded at once, each time."""
    policies: list[DoublingPolicy] = []

    def build() -> DoublingPolicy:
        policies.append(DoublingPolicy())
        return policies[-1]

    ppo = {"num_iterations": NUM_ITERATIONS, "minibatch_rollouts": 5, "learning_rate": 1e-2, **ppo}
    learner = Learner(build, PPO(**ppo), seed=5, num_threads=1, device=device)
    update(learner)
    return learner, policies[0].num_encoded


def update(learner: Learner) -> None:
    for group in GROUPS:
        learner.receive(group)
    assert learner.update(range(len(GROUPS))).error is None


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("ppo", [{}, {"micro_batch_decisions": 7}, {"parallel_passes": 3}])
def test_each_decision_that_fits_is_encoded_once_and_the_weights_are_the_same(
    recomputed: bool, ppo: dict[str, Any]
) -> None:
    ppo = {**ppo, "recompute_log_probs": recomputed}
    num_passes, checksums = NUM_ITERATIONS + recomputed, set()
    for num_kept in (0, 10, NUM_DECISIONS):
        learner, num_encoded = updated(encoding_cache_bytes=ROW_BYTES * num_kept, **ppo)
        assert sum(num_encoded) == num_passes * (NUM_DECISIONS - num_kept) + num_kept
        assert max(num_encoded) > 1
        checksums.add(learner.weights().checksum)
    assert len(checksums) == 1


def test_nothing_is_kept_after_an_update_not_even_after_a_failed_one() -> None:
    learner, num_encoded = updated()
    update(learner)
    assert sum(num_encoded) == 2 * NUM_DECISIONS
    for group in poisoned(GROUPS):
        learner.receive(group)
    assert learner.update(range(len(GROUPS))).error is not None
    num_encoded.clear()
    update(learner)
    assert sum(num_encoded) == NUM_DECISIONS


def test_where_every_decision_is_scored_once_nothing_is_copied() -> None:
    learner, num_encoded = updated(num_iterations=1, encoding_cache_bytes=0)
    theirs, their_num_encoded = updated(num_iterations=1)
    assert num_encoded == their_num_encoded
    assert theirs.weights().checksum == learner.weights().checksum


def test_on_a_device_what_is_kept_comes_back_from_main_memory() -> None:
    learner, num_encoded = updated()
    with StandInDevice():
        theirs, their_num_encoded = updated(device=STAND_IN)
        assert theirs.weights().checksum == learner.weights().checksum
    assert their_num_encoded == num_encoded


def test_a_policy_without_encodings_is_scored_as_ever() -> None:
    assert isinstance(DoublingPolicy(), EncodingPolicy)
    assert not isinstance(TinyChunkPolicy("laplace"), EncodingPolicy)


def test_a_memory_below_0_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ppo\.encoding-cache-bytes must be at least 0, not -1"):
        PPO(encoding_cache_bytes=-1)
