"""The Laplace distribution of each normalized action around the mean of the L1-trained head.

The authors sample with a wider scale than they score with: exp(log-scale) times a factor (5, or 2 for LIBERO-Spatial),
not clamped, against exp(clamped log-scale). Source: RIPT-VLA's code.
"""

import math

import torch

LOG_SCALE_RANGE = (-2.0, 0.5)
"""What the log-scale is clamped to. Source: RIPT-VLA's code (`log_scale_clip`)."""


def quantiles(mean: torch.Tensor, log_scale: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Return what has these probabilities, in (0, 1), of not being exceeded: samples, if they are uniform."""
    centered = uniforms - 0.5
    return mean - log_scale.exp() * centered.sign() * torch.log1p(-2 * centered.abs())


def log_densities(mean: torch.Tensor, log_scale: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the log-density of each value."""
    return -log_scale - (values - mean).abs() * (-log_scale).exp() - math.log(2)
