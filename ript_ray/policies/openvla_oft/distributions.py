"""The distribution of each normalized action around the mean of the action head.

Laplace for a head that was trained by L1, as the published ones, and Gaussian for one trained by mean squared error.
The authors sample with a wider scale than they score with: exp(log-scale) times a factor (5, or 2 for LIBERO-Spatial),
not clamped, against exp(clamped log-scale). Source: RIPT-VLA's code for Laplace, its paper for both.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ript_ray.policies.openvla_oft.config import DistributionName

LOG_SCALE_RANGE = (-2.0, 0.5)
"""What the log-scale is clamped to. Source: RIPT-VLA's code (`log_scale_clip`)."""


@dataclass(frozen=True)
class Distribution:
    """A distribution of location and scale.

    Attributes:
        deviations: What has these probabilities, in (0, 1), of not being exceeded, for location 0 and scale 1.
        log_densities: Log-densities of values, for location 0 and scale 1.
        errors: Loss of values whose least mean is at the best location: that of a head without a scale.
    """

    deviations: Callable[[torch.Tensor], torch.Tensor]
    log_densities: Callable[[torch.Tensor], torch.Tensor]
    errors: Callable[[torch.Tensor], torch.Tensor]

    def quantiles(self, mean: torch.Tensor, log_scale: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        """Return what has these probabilities, in (0, 1), of not being exceeded: samples, if they are uniform."""
        return mean + log_scale.exp() * self.deviations(probabilities)

    def log_prob(self, mean: torch.Tensor, log_scale: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return the log-density of each value."""
        return self.log_densities((values - mean) * (-log_scale).exp()) - log_scale


def _laplace_deviations(probabilities: torch.Tensor) -> torch.Tensor:
    centered = probabilities - 0.5
    return -centered.sign() * torch.log1p(-2 * centered.abs())


DISTRIBUTIONS: dict[DistributionName, Distribution] = {
    "laplace": Distribution(_laplace_deviations, lambda values: -values.abs() - math.log(2), torch.abs),
    "gaussian": Distribution(
        torch.special.ndtri, lambda values: -values.square() / 2 - math.log(2 * math.pi) / 2, torch.square
    ),
}
