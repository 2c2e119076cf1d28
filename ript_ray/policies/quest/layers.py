"""Transformer layers shared by QueST's autoencoder and prior.

Parameter names follow the published checkpoints (`layers.0.self_attn.in_proj_weight`, ...).
"""

import torch
import torch.nn.functional as F
from torch import nn


class KeysValues:
    """Preallocated cache of a `CausalTransformer`: keys and values of the positions processed so far."""

    def __init__(self, num_positions: int):
        self.length = 0
        self._num_positions = num_positions
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def extend(self, index: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new positions to a layer, each (B, heads, positions, head width), and return all positions so far.

        The caller increases `length` once all layers are extended.
        """
        if index == len(self._layers):
            shape = (*key.shape[:2], self._num_positions, key.shape[3])
            self._layers.append((key.new_empty(shape), value.new_empty(shape)))
        end = self.length + key.shape[2]
        keys, values = self._layers[index]
        keys[:, :, self.length : end] = key
        values[:, :, self.length : end] = value
        return keys[:, :, :end], values[:, :, :end]


class SinusoidalPositions(nn.Module):
    """Sinusoidal position encodings, sine and cosine interleaved."""

    inv_freq: torch.Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / 10_000 ** (torch.arange(0, width, 2).float() / width))

    def forward(self, length: int) -> torch.Tensor:
        """Return the encodings (length, width) of positions 0, 1, ..."""
        positions = torch.arange(length, device=self.inv_freq.device).float()
        angles = positions[:, None] * self.inv_freq
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class AddPositions(nn.Module):
    """Adds sinusoidal position encodings to a sequence."""

    def __init__(self, width: int):
        super().__init__()
        self.penc = SinusoidalPositions(width)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        """Add the encodings of positions 0, 1, ... to (B, L, width)."""
        return sequence + self.penc(sequence.shape[1])


class CausalTransformer(nn.Module):
    """Pre-norm causal self-attention, over whole sequences or position by position.

    torch's own layers hold the named parameters; the forward pass is written out because theirs cannot cache keys and
    values.
    """

    def __init__(self, *, width: int, num_heads: int, num_layers: int, feedforward: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, num_heads, feedforward, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(num_layers)
        )

    def forward(self, x: torch.Tensor, cache: KeysValues | None = None) -> torch.Tensor:
        """Transform (B, L, width).

        Args:
            x: The whole sequence, or, with a cache, the positions that follow the cached ones.
            cache: Extended in place, without gradients. After the first call, only one position at a time may follow.
        """
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, nn.TransformerEncoderLayer)
            x = x + layer.dropout1(self._attend(layer.self_attn, layer.norm1(x), cache, index))
            hidden = layer.dropout(F.gelu(layer.linear1(layer.norm2(x))))
            x = x + layer.dropout2(layer.linear2(hidden))
        if cache is not None:
            cache.length += x.shape[1]
        return x

    def _attend(
        self, attention: nn.MultiheadAttention, x: torch.Tensor, cache: KeysValues | None, index: int
    ) -> torch.Tensor:
        projected = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in projected.chunk(3, dim=-1)
        )
        follows = cache is not None and cache.length > 0
        if cache is not None:
            assert not follows or x.shape[1] == 1, "a cached sequence grows by one position at a time"
            key, value = cache.extend(index, key, value)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=not follows)
        return attention.out_proj(mixed.transpose(1, 2).flatten(-2))
