"""PPO clipped surrogate loss per scored unit (token or chunk step).

Source: RIPT-VLA equation 6 (PPO, Schulman et al. 2017); asymmetric clip: DAPO (Yu et al. 2025).
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SurrogateStats:
    """Statistics of one minibatch, as detached scalars.

    Attributes:
        clip_fraction: Fraction of valid units whose ratio is outside the clip range.
        approx_kl: Mean of (r - 1) - log r over valid units, an estimate of KL(sampling || current), in nats.
        mean_ratio: Mean ratio over valid units.
    """

    clip_fraction: torch.Tensor
    approx_kl: torch.Tensor
    mean_ratio: torch.Tensor


def clipped_surrogate(
    new_log_probs_NU: torch.Tensor,
    old_log_probs_NU: torch.Tensor,
    *,
    advantages_N: torch.Tensor,
    valid_NU: torch.Tensor,
    clip_low: float,
    clip_high: float,
    count: torch.Tensor | None = None,
) -> tuple[torch.Tensor, SurrogateStats]:
    """Mean over valid units of -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A).

    Args:
        new_log_probs_NU: Under the current policy, with gradients.
        old_log_probs_NU: Under the sampling policy.
        advantages_N: One per decision, times its weight if it has one; every unit of a decision shares it.
        valid_NU: Mask of the units that count, bool; the values of the others never reach the loss.
        clip_low: How far a ratio may fall below 1, in (0, 1).
        clip_high: How far a ratio may rise above 1, above 0.
        count: Denominator of the means, at least 1; the number of valid units here unless given. For a shard of a
            minibatch, pass the valid units of the whole minibatch: losses and statistics of the shards then sum to
            those of the minibatch.

    Returns:
        The scalar loss (zero if no unit is valid) and its statistics.
    """
    log_ratio = torch.where(valid_NU, new_log_probs_NU - old_log_probs_NU, 0.0)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    advantages = advantages_N.unsqueeze(-1)
    gains = torch.minimum(ratio * advantages, clipped * advantages)
    num_units = valid_NU.sum().clamp(min=1) if count is None else count

    def mean(values: torch.Tensor) -> torch.Tensor:
        return torch.where(valid_NU, values, 0.0).sum() / num_units

    with torch.no_grad():
        stats = SurrogateStats(
            clip_fraction=mean((ratio != clipped).float()),
            approx_kl=mean(ratio - 1.0 - log_ratio),
            mean_ratio=mean(ratio),
        )
    return -mean(gains), stats
