"""QueST's prior: an autoregressive model of skill tokens, given context tokens.

Source: Mete et al. 2024 (QueST), section 4.2; names and shapes of the published checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ript_ray.policies.embedding import Embedding
from ript_ray.policies.quest.layers import AddPositions, CausalTransformer, KeysValues, SharedPrefixes


@dataclass(frozen=True)
class SampledTokens:
    """Sampled tokens and the distributions they were drawn from.

    Attributes:
        tokens_BU: The tokens, int64.
        logits_BUV: Their logits, at temperature 1.
        candidates_BUK: The top-k tokens that each was drawn from, most likely first, int64; None if drawn from all.
    """

    tokens_BU: torch.Tensor
    logits_BUV: torch.Tensor
    candidates_BUK: torch.Tensor | None


class SkillPrior(nn.Module):
    """p(token_1 ... token_U | context), one softmax over the vocabulary per token."""

    def __init__(
        self, *, vocabulary: int, num_tokens: int, width: int, num_heads: int, num_layers: int, dropout: float
    ):
        super().__init__()
        self.num_tokens = num_tokens
        self.start_token = vocabulary
        self.tok_emb = Embedding(vocabulary + 1, width)
        self.add_positional_emb = AddPositions(width)
        self.discard = nn.Dropout(dropout)
        self.decoder = CausalTransformer(
            width=width, num_heads=num_heads, num_layers=num_layers, feedforward=4 * width, dropout=dropout
        )
        self.lnf = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def logits(self, context_BLD: torch.Tensor, tokens_BU: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, U, V) of each token given the context and the tokens before it.

        Rows that begin with the same context token, that of their task, share what is computed of it, except in
        training mode, where dropout tells them apart.
        """
        start = torch.full_like(tokens_BU[:, :1], self.start_token)
        inputs = self.add_positional_emb(self.tok_emb(torch.cat([start, tokens_BU[:, :-1]], dim=1)))
        if self.training:
            hidden = self.decoder(self.discard(torch.cat([context_BLD, inputs], dim=1)), num_read=tokens_BU.shape[1])
        else:
            first_P, prefix_B = _distinct(context_BLD[:, 0])
            prefixes = SharedPrefixes(context_BLD[first_P, :1], prefix_B)
            following = torch.cat([context_BLD[:, 1:], inputs], dim=1)
            hidden = self.decoder.continue_from(prefixes, following, num_read=tokens_BU.shape[1])
        return self.head(self.lnf(hidden))

    def log_probs(self, context_BLD: torch.Tensor, tokens_BU: torch.Tensor) -> torch.Tensor:
        """Return the log-probability (B, U) of each token under the softmax over all, at temperature 1."""
        return score(self.logits(context_BLD, tokens_BU), tokens_BU)

    @torch.no_grad()
    def sample(
        self,
        context_BLD: torch.Tensor,
        generators: Sequence[np.random.Generator],
        *,
        top_k: int,
        temperature: float,
    ) -> SampledTokens:
        """Sample tokens position by position, with cached keys and values.

        Args:
            context_BLD: Context tokens.
            generators: Row b draws its U uniform numbers from `generators[b]`.
            top_k: Sample among the top_k most likely tokens; 0 for all.
            temperature: Sampling temperature.
        """
        uniforms_BU = torch.from_numpy(np.stack([rng.random(self.num_tokens) for rng in generators]))
        positions_UD = self.add_positional_emb.penc(self.num_tokens)
        cache = KeysValues(context_BLD.shape[1] + self.num_tokens)
        tokens, logits, candidates = [], [], []
        last_B1 = torch.full((len(context_BLD), 1), self.start_token, device=context_BLD.device)
        for position in range(self.num_tokens):
            inputs = self.tok_emb(last_B1) + positions_UD[position]
            if position == 0:
                inputs = torch.cat([context_BLD, inputs], dim=1)
            logits_BV = self.head(self.lnf(self.decoder(inputs, cache, num_read=1)[:, 0]))
            best_BK = logits_BV.topk(min(top_k, logits_BV.shape[-1])).indices if top_k else None
            uniforms_B = uniforms_BU[:, position].to(logits_BV.device)
            last_B1 = _draw(logits_BV / temperature, uniforms_B, best_BK)
            tokens.append(last_B1)
            logits.append(logits_BV)
            if best_BK is not None:
                candidates.append(best_BK)
        return SampledTokens(
            tokens_BU=torch.cat(tokens, dim=1),
            logits_BUV=torch.stack(logits, dim=1),
            candidates_BUK=torch.stack(candidates, dim=1) if candidates else None,
        )


def score(
    logits_BUV: torch.Tensor, tokens_BU: torch.Tensor, candidates_BUK: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the log-probability (B, U) of each token under the softmax over all tokens.

    Args:
        logits_BUV: Logits, already divided by the temperature.
        tokens_BU: The tokens, int64.
        candidates_BUK: If given, normalize over these tokens only: distinct, and including the one to score.
    """
    choices_BU1 = tokens_BU.unsqueeze(-1)
    if candidates_BUK is not None:
        logits_BUV = logits_BUV.gather(-1, candidates_BUK)
        choices_BU1 = (candidates_BUK == choices_BU1).int().argmax(dim=-1, keepdim=True)
    return logits_BUV.log_softmax(dim=-1).gather(-1, choices_BU1).squeeze(-1)


def _distinct(rows_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an index of each distinct row, and for each row which of these it equals, bit by bit."""
    rows = np.ascontiguousarray(rows_BD.detach().cpu().numpy())
    keys = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1])))[:, 0]
    _, first_P, distinct_B = np.unique(keys, return_index=True, return_inverse=True)
    return torch.from_numpy(first_P).to(rows_BD.device), torch.from_numpy(distinct_B).to(rows_BD.device)


def _draw(logits_BV: torch.Tensor, uniforms_B: torch.Tensor, candidates_BK: torch.Tensor | None) -> torch.Tensor:
    """Draw tokens (B, 1) by inverting the cumulative distribution at `uniforms_B` in [0, 1)."""
    if candidates_BK is not None:
        logits_BV = logits_BV.gather(-1, candidates_BK)
    cumulative_BV = logits_BV.double().softmax(dim=-1).cumsum(dim=-1)
    # Scaled by the total, which rounding may leave below 1; the product may round up to it.
    targets_B1 = (uniforms_B * cumulative_BV[:, -1]).unsqueeze(-1)
    choice_B1 = torch.searchsorted(cumulative_BV, targets_B1, right=True).clamp(max=logits_BV.shape[-1] - 1)
    return choice_B1 if candidates_BK is None else candidates_BK.gather(-1, choice_B1)
