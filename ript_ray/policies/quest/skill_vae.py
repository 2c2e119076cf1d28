"""QueST's skill autoencoder: a chunk of actions <-> a few discrete skill tokens.

Source: Mete et al. 2024 (QueST), section 4.1; names and shapes of the published checkpoints.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ript_ray.policies.quest.config import ACTIONS_PER_TOKEN
from ript_ray.policies.quest.fsq import FiniteScalarQuantizer
from ript_ray.policies.quest.layers import AddPositions, CausalTransformer, SinusoidalPositions, decode_chunk

KERNELS = (5, 3, 3)
STRIDES = (2, 2, 1)
assert math.prod(STRIDES) == ACTIONS_PER_TOKEN


class CausalConv(nn.Module):
    """A strided, causal convolution in time."""

    def __init__(self, width: int, kernel: int, stride: int):
        super().__init__()
        self.conv = nn.Conv1d(width, width, kernel, stride)
        self.padding = kernel - 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, width, L) -> (B, width, L / stride)."""
        return self.conv(F.pad(x, (self.padding, 0)))


class ConvBlock(nn.Module):
    """A causal convolution with normalization and activation, nested as in the published checkpoints."""

    def __init__(self, width: int, kernel: int, stride: int):
        super().__init__()
        conv = CausalConv(width, kernel, stride)
        self.block = nn.Sequential(conv, nn.Identity(), nn.GroupNorm(8, width), nn.Mish())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, width, L) -> (B, width, L / stride)."""
        return self.block(x)


class ConvStack(nn.Module):
    """Convolutions that downsample a chunk to one vector per token."""

    def __init__(self, width: int):
        super().__init__()
        blocks = (ConvBlock(width, kernel, stride) for kernel, stride in zip(KERNELS, STRIDES, strict=True))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, width) -> (B, U, width)."""
        return self.blocks(x.transpose(1, 2)).transpose(1, 2)


class SkillVAE(nn.Module):
    """Encodes a chunk (B, C, A) to tokens (B, U) and decodes tokens to a chunk."""

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_length: int,
        fsq_levels: tuple[int, ...],
        width: int,
        num_layers: tuple[int, int],
        dropout: float,
    ):
        """Build the autoencoder.

        Args:
            action_dim: Entries of an action, A.
            chunk_length: Actions of a chunk, C; a multiple of `ACTIONS_PER_TOKEN`.
            fsq_levels: Levels of the quantizer; their product is the vocabulary V.
            width: Width of the hidden vectors; 4 heads, feed-forward 4 times as wide.
            num_layers: Layers of the encoder and of the decoder.
            dropout: Dropout probability.
        """
        super().__init__()
        self.num_tokens = chunk_length // ACTIONS_PER_TOKEN
        self.chunk_length = chunk_length
        self.action_proj = nn.Linear(action_dim, width)
        self.conv_block = ConvStack(width)
        self.add_positional_emb = AddPositions(width)
        self.encoder = CausalTransformer(
            width=width, num_heads=4, num_layers=num_layers[0], feedforward=4 * width, dropout=dropout
        )
        self.vq = FiniteScalarQuantizer(width, fsq_levels)
        self.fixed_positional_emb = SinusoidalPositions(width)
        layer = nn.TransformerDecoderLayer(
            width, 4, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, num_layers[1])
        self.action_head = nn.Linear(width, action_dim)

    def forward(self, actions_BCA: torch.Tensor) -> torch.Tensor:
        """Reconstruct a chunk (B, C, A) through the quantizer."""
        return self._decode(self.vq(self.encode(actions_BCA))[0])

    def tokens(self, actions_BCA: torch.Tensor) -> torch.Tensor:
        """Return the skill tokens (B, U) of a chunk, int64."""
        return self.vq(self.encode(actions_BCA))[1]

    def decode_tokens(self, tokens_BU: torch.Tensor) -> torch.Tensor:
        """Decode tokens (B, U) to a chunk (B, C, A)."""
        return self._decode(self.vq.embed(tokens_BU))

    def encode(self, actions_BCA: torch.Tensor) -> torch.Tensor:
        """Return the input of the quantizer, one vector per token: (B, U, width)."""
        hidden = self.conv_block(self.action_proj(actions_BCA))
        return self.encoder(self.add_positional_emb(hidden))

    def _decode(self, codes_BUD: torch.Tensor) -> torch.Tensor:
        queries_1CD = self.fixed_positional_emb(self.chunk_length).unsqueeze(0)
        return self.action_head(decode_chunk(self.decoder, queries_1CD, codes_BUD))
