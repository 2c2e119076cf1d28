"""The heads: from the hidden states of the action slots to means and scales of the actions.

Both are the authors' `MLPResNet` on the hidden states of one action's slots, side by side.
Source: `L1RegressionActionHead` of OpenVLA-OFT, `LaplaceScaleHead` of RIPT-VLA.
"""

import torch
import torch.nn.functional as F
from torch import nn

NUM_BLOCKS = 2
INITIAL_LOG_SCALE = -3.0
"""What a new scale head begins with. Source: authors' code."""


class MLPResNet(nn.Module):
    """Residual blocks between two linear layers, normalized before each."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, hidden)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(hidden) for _ in range(NUM_BLOCKS))
        self.layer_norm2 = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., inputs) to (..., outputs)."""
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class ResidualBlock(nn.Module):
    """x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, width: int):
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform (..., width)."""
        return x + self.ffn(x)


class ActionHead(nn.Module):
    """The mean of each action, normalized."""

    def __init__(self, width: int, action_dim: int):
        super().__init__()
        self.model = MLPResNet(width * action_dim, width, action_dim)

    def forward(self, slots_BCD: torch.Tensor) -> torch.Tensor:
        """Map the hidden states (B, C, A x width) of each action's slots to (B, C, A)."""
        return self.model(slots_BCD)


class LaplaceScaleHead(nn.Module):
    """The logarithm of the scale of each action, not clamped."""

    def __init__(self, width: int, action_dim: int):
        super().__init__()
        self.trunk = MLPResNet(width * action_dim, width, width)
        self.log_b_head = nn.Linear(width, action_dim)
        nn.init.xavier_uniform_(self.log_b_head.weight, gain=0.01)
        nn.init.constant_(self.log_b_head.bias, INITIAL_LOG_SCALE)

    def forward(self, slots_BCD: torch.Tensor) -> torch.Tensor:
        """Map the hidden states (B, C, A x width) of each action's slots to (B, C, A)."""
        return self.log_b_head(self.trunk(slots_BCD))
