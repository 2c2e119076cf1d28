"""QueST's observation encoders, one per camera and low-dimensional sensor.

Parameter names and shapes follow the published checkpoints; a camera's encoder is the first half of ResNet-18
(He et al. 2016) and a spatial softmax (Finn et al. 2016).
"""

import torch
import torch.nn.functional as F
from torch import nn

from ript_ray.policies.quest.config import PIXELS_PER_FEATURE


class StateEncoder(nn.Module):
    """Encoder of a low-dimensional sensor: optional standardization, then a linear layer."""

    offset: torch.Tensor
    scale: torch.Tensor

    def __init__(self, dim: int, width: int, *, is_standardized: bool):
        super().__init__()
        self.is_standardized = is_standardized
        if is_standardized:
            self.register_buffer("offset", torch.zeros(dim))
            self.register_buffer("scale", torch.ones(dim))
        self.projection = nn.Sequential(nn.Linear(dim, width))

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """(B, dim) -> (B, width)."""
        return self.projection((state - self.offset) / self.scale if self.is_standardized else state)


class ImageEncoder(nn.Module):
    """Encoder of a camera: ResNet-18 up to its second stage, spatial softmax, linear layer."""

    def __init__(self, *, size: int, channels: int, width: int):
        """Build the encoder.

        Args:
            size: Side of the input images, in pixels; a multiple of `PIXELS_PER_FEATURE`.
            channels: Channels of the first stage; the second has twice as many.
            width: Width of the output.
        """
        super().__init__()
        self.size = size
        self.resnet18_base = nn.Sequential(
            nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.block_1 = ResidualBlock(channels, channels, stride=1)
        self.block_2 = ResidualBlock(channels, channels, stride=1)
        self.block_3 = ResidualBlock(channels, 2 * channels, stride=2)
        self.block_4 = ResidualBlock(2 * channels, 2 * channels, stride=1)
        self.projection_layer = KeypointProjection(2 * channels, size // PIXELS_PER_FEATURE, width)

    def forward(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        """Encode images.

        Args:
            images_BHWC: uint8 RGB, upright, at least `size` pixels on each side; larger images are scaled down.

        Returns:
            (B, width).

        Raises:
            ValueError: The images have another type or shape.
        """
        x = self.resnet18_base(self._prepare(images_BHWC))
        x = self.block_4(self.block_3(self.block_2(self.block_1(x))))
        return self.projection_layer(x)

    def _prepare(self, images: torch.Tensor) -> torch.Tensor:
        size = self.size
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be uint8 (B, height, width, 3), not {images.dtype} {tuple(images.shape)}")
        if min(images.shape[1:3]) < size:
            raise ValueError(f"images must be at least {size} pixels on each side, not {tuple(images.shape[1:3])}")
        x = images.permute(0, 3, 1, 2).float() / 255.0
        if images.shape[1:3] == (size, size):
            return x
        return F.interpolate(x, (size, size), mode="bilinear", align_corners=False)


class ResidualBlock(nn.Module):
    """Two convolutions and a skip connection. Source: He et al. 2016, figure 5 (left)."""

    def __init__(self, channels_in: int, channels: int, *, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels_in != channels:
            shortcut = nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels_in, H, W) -> (B, channels, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        hidden = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(hidden)) + shortcut)


class SpatialSoftmax(nn.Module):
    """Expected position of each channel's activation. Source: Finn et al. 2016, equation 2."""

    pos_x: torch.Tensor
    pos_y: torch.Tensor

    def __init__(self, channels: int, grid: int):
        super().__init__()
        line = torch.linspace(-1.0, 1.0, grid)
        # The published encoders call the row "x"; kept, because their weights were trained with it.
        self.register_buffer("pos_x", line.repeat_interleave(grid).unsqueeze(0))
        self.register_buffer("pos_y", line.repeat(grid).unsqueeze(0))
        # Part of the published checkpoints, though with one keypoint per channel it is never applied.
        self._spatial_conv = nn.Conv2d(channels, channels, 1).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels, grid, grid) -> (B, 2 * channels): all rows, then all columns, each in [-1, 1]."""
        weights = x.flatten(2).softmax(dim=-1)
        return torch.cat([(self.pos_x * weights).sum(-1), (self.pos_y * weights).sum(-1)], dim=-1)


class KeypointProjection(nn.Module):
    """Spatial softmax, then a linear layer."""

    def __init__(self, channels: int, grid: int, width: int):
        super().__init__()
        self.spatial_softmax = SpatialSoftmax(channels, grid)
        self.projection = nn.Linear(2 * channels, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels, grid, grid) -> (B, width)."""
        return self.projection(self.spatial_softmax(x))
