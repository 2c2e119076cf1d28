"""The optional first step of reading a record, which training does not change, is checked where a policy has it."""

from collections.abc import Mapping

import pytest
import torch

from ript_ray.policies.conformance.policy import check_policy, made_up_spec
from tests.ript_ray.policies.test_conformance import Gaussian, GaussianPolicy, changed, failures

CHECK = "encode returns what training does not change and log_probs reads"


class EncodingGaussianPolicy(GaussianPolicy):
    def encode(self, record: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"doubled": 2 * record["state"]}

    def log_probs(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        state = record["doubled"] / 2 if "doubled" in record else record["state"]
        return self.score(state, record["chunk"])


class TriplingPolicy(EncodingGaussianPolicy):
    def encode(self, record: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"doubled": 3 * record["state"]}


class LearningPolicy(EncodingGaussianPolicy):
    def encode(self, record: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**super().encode(record), "mean": self.mean(record["state"]).detach()}


class DifferentiablePolicy(EncodingGaussianPolicy):
    def encode(self, record: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**super().encode(record), "mean": self.mean(record["state"])}


@pytest.mark.parametrize(
    ("policy", "error"),
    [
        (TriplingPolicy, "with its encodings"),
        (LearningPolicy, "it depends on trained parameters"),
        (DifferentiablePolicy, "mean must have a row per decision and no gradients"),
    ],
)
def test_a_broken_encoding_fails_its_check_and_no_other(policy: type[GaussianPolicy], error: str) -> None:
    failed = failures(changed(Gaussian, policy_type=policy)())
    assert list(failed) == [CHECK]
    assert error in failed[CHECK]


def test_policies_with_encodings_conform_and_the_others_are_not_asked() -> None:
    assert failures(changed(Gaussian, policy_type=EncodingGaussianPolicy)()) == {}
    assert CHECK not in {result.name for result in check_policy(Gaussian(), made_up_spec(Gaussian()))}
