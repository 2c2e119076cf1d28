"""Image augmentation for supervised training: color jitter, then a random shift.

Source: QueST (Mete et al. 2024), the authors' code: one draw of jitter for most images of a batch, then a shift of
every image by a few pixels. torchvision has both, but its builds do not fit every build of torch.
"""

import numpy as np
import torch
import torch.nn.functional as F

from ript_ray.policies.supervised import Augmentation

GREY = (0.2989, 0.587, 0.114)
"""Luma weights of red, green and blue. Source: ITU-R BT.601."""


def augment(images_BHWC: torch.Tensor, generator: np.random.Generator, settings: Augmentation) -> torch.Tensor:
    """Jitter the colors of some images, then shift all of them.

    Args:
        images_BHWC: uint8; not modified.
        generator: The only source of randomness.
        settings: Ranges and probability.

    Returns:
        uint8 images of the same shape.
    """
    chosen = torch.from_numpy(generator.random(len(images_BHWC)) < settings.color_share)
    x = images_BHWC.permute(0, 3, 1, 2).float() / 255.0
    if settings.color and chosen.any():
        x[chosen] = _recolor(x[chosen], generator, settings.color)
    if settings.shift:
        x = _shift(x, generator, settings.shift)
    return (x * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1)


def _recolor(x: torch.Tensor, generator: np.random.Generator, color: float) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue in a random order; (B, 3, H, W) in [0, 1]."""
    brightness, contrast, saturation = generator.uniform(1.0 - color, 1.0 + color, size=3).tolist()
    hue = float(generator.uniform(-color, color))
    for change in generator.permutation(4):
        match int(change):
            case 0:
                x = x * brightness
            case 1:
                mean = _grey(x).mean((1, 2, 3), keepdim=True)
                x = mean + contrast * (x - mean)
            case 2:
                grey = _grey(x)
                x = grey + saturation * (x - grey)
            case 3:
                x = turn_hue(x, hue)
        x = x.clamp(0.0, 1.0)
    return x


def _grey(x: torch.Tensor) -> torch.Tensor:
    return (x * torch.tensor(GREY, device=x.device).view(3, 1, 1)).sum(1, keepdim=True)


def turn_hue(x: torch.Tensor, turn: float) -> torch.Tensor:
    """Rotate the hue by a fraction of the full circle in HSV space; (B, 3, H, W) in [0, 1].

    Source: Smith 1978, as in the standard library's `colorsys`.
    """
    red, green, blue = x.unbind(1)
    value, chroma = x.amax(1), x.amax(1) - x.amin(1)
    safe = chroma.clamp(min=1e-8)
    sector = torch.where(
        value == red,
        ((green - blue) / safe) % 6.0,
        torch.where(value == green, (blue - red) / safe + 2.0, (red - green) / safe + 4.0),
    )
    sector = (sector + 6.0 * turn) % 6.0
    offsets = torch.tensor([5.0, 3.0, 1.0], device=x.device).view(1, 3, 1, 1)
    distance = (offsets + sector.unsqueeze(1)) % 6.0
    share = torch.minimum(distance, 4.0 - distance).clamp(0.0, 1.0)
    return value.unsqueeze(1) - chroma.unsqueeze(1) * share


def _shift(x: torch.Tensor, generator: np.random.Generator, shift: int) -> torch.Tensor:
    height, width = x.shape[-2:]
    padded = F.pad(x, (shift,) * 4, mode="replicate")
    corners = torch.from_numpy(generator.integers(0, 2 * shift + 1, size=(len(x), 2)))
    rows = (corners[:, :1] + torch.arange(height)).to(x.device)[:, None, :, None]
    columns = (corners[:, 1:] + torch.arange(width)).to(x.device)[:, None, None, :]
    images = torch.arange(len(x), device=x.device)[:, None, None, None]
    channels = torch.arange(3, device=x.device)[None, :, None, None]
    return padded[images, channels, rows, columns]
