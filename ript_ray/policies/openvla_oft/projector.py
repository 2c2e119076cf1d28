"""From the features of the vision towers, and from the robot's state, to embeddings of the language model."""

import torch
import torch.nn.functional as F
from torch import nn

EXPANSION = 4
"""Width of the first hidden layer of the patches' projector, in multiples of its input. Source: authors' code."""


class PatchProjector(nn.Module):
    """Three layers on the features of each patch; `projector` in the published files."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.fc1 = nn.Linear(features, EXPANSION * features)
        self.fc2 = nn.Linear(EXPANSION * features, width)
        self.fc3 = nn.Linear(width, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (B, patches, features) to (B, patches, width)."""
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))


class ProprioProjector(nn.Module):
    """Two layers on the robot's state, normalized to [-1, 1]."""

    def __init__(self, proprio_dim: int, width: int):
        super().__init__()
        self.fc1 = nn.Linear(proprio_dim, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, proprio: torch.Tensor) -> torch.Tensor:
        """Map (B, proprio) to one embedding (B, width)."""
        return self.fc2(F.gelu(self.fc1(proprio)))
