"""Acting without chance: offered by some policies, refused by name for the others."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from experiments.extending import LaplaceConfig, Line
from ript_ray.config.experiment import Experiment
from ript_ray.config.rl import Evaluation
from ript_ray.errors import ConfigError
from ript_ray.evaluation.evaluate import evaluate, evaluation_requests
from ript_ray.policies.conformance.policy import check_policy, made_up_spec
from ript_ray.runtime.serial import SerialRuntime
from ript_ray.types import Arrays
from tests.conftest import line_parts, line_stream
from tests.fakes import TinyChunkPolicy
from tests.ript_ray.policies.test_conformance import Gaussian, GaussianPolicy, changed, failures

CHECK = "act_deterministically returns valid actions without chance"


class MeanPolicy(GaussianPolicy):
    def act_deterministically(self, observations: Arrays, instructions: Sequence[str]) -> NDArray[np.float32]:
        mean_BC = self.mean(torch.from_numpy(observations["state"])).detach()
        return mean_BC.clamp(-1, 1).unsqueeze(-1).repeat(1, 1, self.action_dim).numpy()


class ChancePolicy(MeanPolicy):
    def act_deterministically(self, observations: Arrays, instructions: Sequence[str]) -> NDArray[np.float32]:
        return super().act_deterministically(observations, instructions) * np.float32(np.random.uniform(0.1, 0.9))


class NeighbourPolicy(MeanPolicy):
    def act_deterministically(self, observations: Arrays, instructions: Sequence[str]) -> NDArray[np.float32]:
        return np.tanh(super().act_deterministically(observations, instructions).cumsum(0, dtype=np.float32))


class LoudPolicy(MeanPolicy):
    def act_deterministically(self, observations: Arrays, instructions: Sequence[str]) -> NDArray[np.float32]:
        return super().act_deterministically(observations, instructions) + np.float32(3)


@pytest.mark.parametrize(
    ("policy", "error"),
    [
        (GaussianPolicy, "GaussianPolicy has no act_deterministically"),
        (ChancePolicy, "with other global seeds"),
        (NeighbourPolicy, "row 1 decided alone"),
        (LoudPolicy, "actions are from"),
    ],
)
def test_a_broken_deterministic_mode_fails_its_check_and_no_other(policy: type[GaussianPolicy], error: str) -> None:
    failed = failures(changed(Gaussian, policy_type=policy, is_deterministic=True)())
    assert list(failed) == [CHECK]
    assert error in failed[CHECK]


def test_policies_that_offer_the_mode_conform_and_those_that_do_not_are_not_asked() -> None:
    assert failures(changed(Gaussian, policy_type=MeanPolicy, is_deterministic=True)()) == {}
    results = {result.name: result.error for result in check_policy(LaplaceConfig(), Line().spec)}
    assert results[CHECK] is None
    assert CHECK not in {result.name for result in check_policy(Gaussian(), made_up_spec(Gaussian()))}


def test_a_deterministic_evaluation_does_not_depend_on_its_seed_and_a_sampled_one_does() -> None:
    contexts = [line_stream(20).at(index) for index in range(30)]
    runtime = SerialRuntime(line_parts(lambda: TinyChunkPolicy("gaussian")))
    found = {
        deterministic: {
            evaluate(
                runtime, evaluation_requests(contexts, batch_size=4, seed=seed, deterministic=deterministic)
            ).num_env_steps
            for seed in range(4)
        }
        for deterministic in (True, False)
    }
    assert len(found[True]) == 1
    assert len(found[False]) > 1


def test_the_setting_is_refused_by_name_for_a_policy_without_the_mode() -> None:
    experiment = Experiment("reach", ("reach-v3",))
    with pytest.raises(ConfigError, match=r"evaluation\.deterministic: policy quest has no deterministic mode"):
        replace(experiment, evaluation=Evaluation(deterministic=True))
