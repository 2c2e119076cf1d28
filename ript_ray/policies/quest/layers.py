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


class SharedPrefixes:
    """Keys and values of prefixes, each computed once for all sequences that begin with it, with gradients."""

    def __init__(self, prefixes_PLD: torch.Tensor, rows_B: torch.Tensor):
        """Note the prefixes.

        Args:
            prefixes_PLD: Inputs of the distinct prefixes.
            rows_B: Which prefix each sequence begins with.
        """
        self.inputs_PLD = prefixes_PLD
        self.length = 0
        self._rows_B = rows_B
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def extend(self, index: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the prefixes' keys and values in the first pass; in the second, put them before those of each row."""
        if self.length == 0:
            self._layers.append((key, value))
            return key, value
        keys, values = (self._of_each_row(part) for part in self._layers[index])
        return torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)

    def _of_each_row(self, parts_P: torch.Tensor) -> torch.Tensor:
        """Return the part of each sequence's prefix; a lookup as in an embedding, whose backward pass is one sum."""
        return F.embedding(self._rows_B, parts_P.flatten(1)).unflatten(-1, parts_P.shape[1:])


class CausalTransformer(nn.Module):
    """Pre-norm causal self-attention, over whole sequences or position by position.

    torch's own layers hold the named parameters; the forward pass is written out because theirs cannot cache keys and
    values, nor leave out what nobody reads.
    """

    def __init__(self, *, width: int, num_heads: int, num_layers: int, feedforward: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, num_heads, feedforward, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(num_layers)
        )

    def forward(
        self, x: torch.Tensor, cache: KeysValues | SharedPrefixes | None = None, *, num_read: int | None = None
    ) -> torch.Tensor:
        """Transform (B, L, width).

        Args:
            x: The whole sequence, or, with a cache, the positions that follow the cached ones.
            cache: Extended by these positions.
            num_read: Positions at the end that are read, and returned; by default all. The last layer leaves out what
                only the others need; with 0, it only extends the cache.
        """
        length = x.shape[1]
        num_unread = 0 if num_read is None else length - num_read
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, nn.TransformerEncoderLayer)
            first = num_unread if index == len(self.layers) - 1 else 0
            seen = layer.norm1(x)
            if first == length:  # only the cache will be read
                assert cache is not None
                cache.extend(index, *_keys_values(layer.self_attn, seen))
                x = x[:, first:]
                break
            query, key, value = _project(layer.self_attn, seen[:, first:] if first else seen, seen)
            if cache is not None:
                key, value = cache.extend(index, key, value)
            x = x[:, first:] + layer.dropout1(_attend(layer.self_attn, query, key, value, is_causal=True))
            hidden = layer.dropout(F.gelu(layer.linear1(layer.norm2(x))))
            x = x + layer.dropout2(layer.linear2(hidden))
        if cache is not None:
            cache.length += length
        return x

    def continue_from(self, prefixes: SharedPrefixes, x: torch.Tensor, *, num_read: int) -> torch.Tensor:
        """Transform sequences that begin with shared prefixes and go on with `x` (B, L, width); see `forward`."""
        self(prefixes.inputs_PLD, prefixes, num_read=0)
        return self(x, prefixes, num_read=num_read)


def decode_chunk(decoder: nn.TransformerDecoder, queries_1CD: torch.Tensor, codes_BUD: torch.Tensor) -> torch.Tensor:
    """Let the same queries of all rows attend to themselves, causally, and to their row's codes; returns (B, C, D).

    Before they first attend to codes, nothing tells rows apart, and what is computed of one holds for all; except in
    training mode, where dropout does.
    """
    x = queries_1CD.expand(len(codes_BUD), -1, -1) if decoder.training else queries_1CD
    for layer in decoder.layers:
        assert isinstance(layer, nn.TransformerDecoderLayer)
        seen, attention = layer.norm1(x), layer.self_attn
        x = x + layer.dropout1(_attend(attention, *_project(attention, seen, seen), is_causal=True))
        attention = layer.multihead_attn
        x = x + layer.dropout2(_attend(attention, *_project(attention, layer.norm2(x), codes_BUD), is_causal=False))
        hidden = layer.dropout(F.gelu(layer.linear1(layer.norm3(x))))
        x = x + layer.dropout3(layer.linear2(hidden))
    return x


def _project(attention: nn.MultiheadAttention, queried: torch.Tensor, seen: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the queries of some positions, and the keys and values of others, each (B, heads, L, head width)."""
    weight, bias, width = attention.in_proj_weight, attention.in_proj_bias, seen.shape[-1]
    if queried is seen:
        return _by_head(attention, *F.linear(seen, weight, bias).chunk(3, dim=-1))
    queries = F.linear(queried, weight[:width], bias[:width])
    return *_by_head(attention, queries), *_keys_values(attention, seen)


def _keys_values(attention: nn.MultiheadAttention, seen: torch.Tensor) -> tuple[torch.Tensor, ...]:
    weight, bias, width = attention.in_proj_weight, attention.in_proj_bias, seen.shape[-1]
    return _by_head(attention, *F.linear(seen, weight[width:], bias[width:]).chunk(2, dim=-1))


def _by_head(attention: nn.MultiheadAttention, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in parts)


def _attend(
    attention: nn.MultiheadAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, is_causal: bool
) -> torch.Tensor:
    """Let the queries, the last positions if `is_causal`, see all keys, or those up to themselves."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    mask = None
    if is_causal and 1 < num_queries < num_keys:
        is_seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device)
        mask = is_seen.tril(num_keys - num_queries)
    dropout = attention.dropout if attention.training else 0.0
    mixed = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_causal and num_queries == num_keys
    )
    return attention.out_proj(mixed.transpose(1, 2).flatten(-2))
