import itertools

import pytest

from ript_ray.rl.dynamic_sampling import Verdict, judge, trained_verdicts


def test_a_group_is_accepted_exactly_when_its_rewards_differ() -> None:
    for rewards in itertools.product((0.0, 1.0), repeat=5):
        expected = {0.0: Verdict.ALL_FAILED, 5.0: Verdict.ALL_SOLVED}.get(sum(rewards), Verdict.ACCEPTED)
        assert judge(rewards) is expected


@pytest.mark.parametrize(("reward", "verdict"), [(0.0, "all_failed"), (1.0, "all_solved")])
def test_a_rejection_names_its_reason(reward: float, verdict: str) -> None:
    assert str(judge([reward] * 4)) == verdict


def test_uniform_groups_are_trained_only_without_dynamic_sampling() -> None:
    assert trained_verdicts(dynamic=True) == (Verdict.ACCEPTED,)
    assert set(trained_verdicts(dynamic=False)) == {Verdict.ACCEPTED, Verdict.ALL_FAILED, Verdict.ALL_SOLVED}
