import numpy as np
import pytest
import torch

from ript_ray.rl.loss import clipped_surrogate


def oracle(new, old, advantages, valid, low, high) -> tuple[float, float]:
    """Equation 6 unit by unit, in float64; also the share of units outside the clip range."""
    terms, outside = [], []
    for n, u in np.argwhere(valid):
        ratio = np.exp(new[n, u] - old[n, u])
        clipped = min(max(ratio, 1 - low), 1 + high)
        terms.append(min(ratio * advantages[n], clipped * advantages[n]))
        outside.append(ratio != clipped)
    return -float(np.mean(terms)), float(np.mean(outside))


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.1, 0.28), (0.3, 0.05)])
def test_loss_equals_equation_6_for_symmetric_and_asymmetric_clips(low: float, high: float) -> None:
    rng = np.random.default_rng(1)
    new, old = rng.normal(-2, 0.4, (2, 30, 4))
    advantages, valid = rng.normal(size=30), rng.random((30, 4)) < 0.7
    loss, stats = clipped_surrogate(
        torch.tensor(new),
        torch.tensor(old),
        advantages_N=torch.tensor(advantages),
        valid_NU=torch.tensor(valid),
        clip_low=low,
        clip_high=high,
    )
    expected_loss, expected_outside = oracle(new, old, advantages, valid, low, high)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-9)
    assert stats.clip_fraction.item() == pytest.approx(expected_outside, rel=1e-6)


def test_gradient_equals_finite_differences() -> None:
    rng = np.random.default_rng(2)
    new, old = rng.normal(-2, 0.3, (2, 6, 3))
    advantages, valid = rng.normal(size=6), rng.random((6, 3)) < 0.8
    tensor = torch.tensor(new, requires_grad=True)
    loss, _ = clipped_surrogate(
        tensor,
        torch.tensor(old),
        advantages_N=torch.tensor(advantages),
        valid_NU=torch.tensor(valid),
        clip_low=0.2,
        clip_high=0.3,
    )
    loss.backward()
    numeric = np.zeros_like(new)
    for index in np.ndindex(new.shape):
        shifted = [new.copy(), new.copy()]
        shifted[0][index] += 1e-6
        shifted[1][index] -= 1e-6
        up, down = (oracle(values, old, advantages, valid, 0.2, 0.3)[0] for values in shifted)
        numeric[index] = (up - down) / 2e-6
    assert tensor.grad is not None
    np.testing.assert_allclose(tensor.grad, numeric, atol=1e-8)


def test_invalid_units_reach_neither_loss_nor_gradient_whatever_they_hold() -> None:
    new = torch.tensor([[-1.0, float("nan")], [-2.0, float("inf")]], requires_grad=True)
    loss, stats = clipped_surrogate(
        new,
        torch.tensor([[-1.1, 0.0], [-1.9, float("nan")]]),
        advantages_N=torch.tensor([1.0, -1.0]),
        valid_NU=torch.tensor([[True, False], [True, False]]),
        clip_low=0.2,
        clip_high=0.2,
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(stats.approx_kl)
    assert new.grad is not None
    assert torch.equal(new.grad[:, 1], torch.zeros(2))
    assert new.grad[:, 0].all()


def test_a_batch_without_valid_units_has_zero_loss() -> None:
    new = torch.zeros(2, 2, requires_grad=True)
    loss, _ = clipped_surrogate(
        new,
        torch.zeros(2, 2),
        advantages_N=torch.ones(2),
        valid_NU=torch.zeros(2, 2, dtype=torch.bool),
        clip_low=0.2,
        clip_high=0.2,
    )
    assert loss.item() == 0.0
