import numpy as np
import pytest

from ript_ray.rl.advantages import leave_one_out


def oracle(rewards: list[float]) -> list[float]:
    """By the definition, one rollout at a time."""
    others = [[other for j, other in enumerate(rewards) if j != k] for k in range(len(rewards))]
    return [reward - float(np.mean(rest)) for reward, rest in zip(rewards, others, strict=True)]


@pytest.mark.parametrize("num_rollouts", [2, 3, 8, 16])
def test_leave_one_out_equals_the_definition(num_rollouts: int) -> None:
    rng = np.random.default_rng(num_rollouts)
    for _ in range(20):
        rewards = rng.integers(0, 2, num_rollouts).astype(float).tolist()
        np.testing.assert_allclose(leave_one_out(rewards), oracle(rewards), atol=1e-6)


def test_winners_and_losers_get_the_papers_values() -> None:
    advantages = leave_one_out([1, 1, 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(advantages, [6 / 7] * 2 + [-2 / 7] * 6, atol=1e-6)


def test_uniform_rewards_have_exactly_zero_advantage() -> None:
    for num_rollouts in range(2, 40):
        assert not leave_one_out([1.0] * num_rollouts).any()
        assert not leave_one_out([0.0] * num_rollouts).any()


@pytest.mark.parametrize("rewards", [[], [1.0]])
def test_fewer_than_two_rollouts_are_refused(rewards: list[float]) -> None:
    with pytest.raises(ValueError, match=f"at least 2 rollouts in a group, not {len(rewards)}"):
        leave_one_out(rewards)
