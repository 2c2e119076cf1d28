"""Finite scalar quantization: a codebook without learned codes.

Source: Mentzer et al. 2023 (FSQ), as used by QueST (Mete et al. 2024).
"""

import math

import torch
from torch import nn


class FiniteScalarQuantizer(nn.Module):
    """Rounds each projected coordinate to one of its levels; a code is the tuple of levels.

    Args:
        width: Width of the vectors to quantize.
        levels: Number of levels per coordinate; their product is the vocabulary.
    """

    _levels: torch.Tensor
    _basis: torch.Tensor

    def __init__(self, width: int, levels: tuple[int, ...]):
        super().__init__()
        self.vocabulary = math.prod(levels)
        self.project_in = nn.Linear(width, len(levels))
        self.project_out = nn.Linear(len(levels), width)
        basis = [math.prod(levels[:i]) for i in range(len(levels))]
        # Constants of the architecture, not weights: not part of checkpoints.
        self.register_buffer("_levels", torch.tensor(levels), persistent=False)
        self.register_buffer("_basis", torch.tensor(basis), persistent=False)

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Quantize (..., width).

        Returns:
            The quantized vectors (..., width), with straight-through gradients, and the codes (...), int64.
        """
        levels = self._levels
        half_level = (levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        shift = torch.atanh(offset / half_level)
        bounded = torch.tanh(self.project_in(hidden) + shift) * half_level - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        half_width = levels // 2
        codes = ((rounded.detach() + half_width) * self._basis).sum(-1).round().long()
        return self.project_out(rounded / half_width), codes

    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the vectors (..., width) of codes (...)."""
        return self.project_out(self.values(codes))

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the coordinates (..., number of levels) of codes (...), each in [-1, 1]."""
        half_width = self._levels // 2
        digits = codes.unsqueeze(-1) // self._basis % self._levels
        return (digits - half_width) / half_width
