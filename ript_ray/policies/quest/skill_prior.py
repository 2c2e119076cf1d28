"""QueST's prior: an autoregressive model of skill tokens, given context tokens.

Source: Mete et al. 2024 (QueST), section 4.2; names and shapes of the published checkpoints.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ript_ray.policies.quest.layers import AddPositions, CausalTransformer, KeysValues


class SkillPrior(nn.Module):
    """p(token_1 ... token_U | context), one softmax over the vocabulary per token."""

    def __init__(
        self, *, vocabulary: int, num_tokens: int, width: int, num_heads: int, num_layers: int, dropout: float
    ):
        super().__init__()
        self.num_tokens = num_tokens
        self.start_token = vocabulary
        self.tok_emb = nn.Embedding(vocabulary + 1, width)
        self.add_positional_emb = AddPositions(width)
        self.drop = nn.Dropout(dropout)
        self.decoder = CausalTransformer(
            width=width, num_heads=num_heads, num_layers=num_layers, feedforward=4 * width, dropout=dropout
        )
        self.lnf = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def logits(self, context_BLD: torch.Tensor, tokens_BU: torch.Tensor) -> torch.Tensor:
        """Logits (B, U, V) of each token given the context and the tokens before it."""
        start = torch.full_like(tokens_BU[:, :1], self.start_token)
        inputs = self.add_positional_emb(self.tok_emb(torch.cat([start, tokens_BU[:, :-1]], dim=1)))
        hidden = self.decoder(self.drop(torch.cat([context_BLD, inputs], dim=1)))
        return self.head(self.lnf(hidden[:, context_BLD.shape[1] :]))

    def log_probs(self, context_BLD: torch.Tensor, tokens_BU: torch.Tensor) -> torch.Tensor:
        """Log-probability (B, U) of each token under the full softmax."""
        log_probs_BUV = self.logits(context_BLD, tokens_BU).log_softmax(dim=-1)
        return log_probs_BUV.gather(-1, tokens_BU.unsqueeze(-1)).squeeze(-1)

    @torch.no_grad()
    def sample(
        self,
        context_BLD: torch.Tensor,
        generators: Sequence[np.random.Generator],
        *,
        top_k: int,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw tokens, one position per step over cached keys and values.

        Args:
            context_BLD: Context tokens.
            generators: Row b draws its U uniform numbers from `generators[b]`.
            top_k: Draw among this many most likely tokens; 0 for all.
            temperature: Divides the logits that are drawn from.

        Returns:
            Tokens (B, U), and their log-probabilities (B, U) under the *full* softmax at temperature 1,
            which is what `log_probs` scores: the authors sample from the top 5 and score against all.
        """
        uniforms_BU = torch.from_numpy(np.stack([rng.random(self.num_tokens) for rng in generators]))
        cache: KeysValues = []
        tokens, scores = [], []
        last = torch.full((len(context_BLD), 1), self.start_token, device=context_BLD.device)
        for position in range(self.num_tokens):
            inputs = self.add_positional_emb(self.tok_emb(last), start=position)
            if position == 0:
                inputs = torch.cat([context_BLD, inputs], dim=1)
            logits_BV = self.head(self.lnf(self.decoder(inputs, cache)[:, -1]))
            uniforms_B = uniforms_BU[:, position].to(logits_BV.device)
            last = _draw(logits_BV / temperature, uniforms_B, top_k).unsqueeze(-1)
            tokens.append(last)
            scores.append(logits_BV.log_softmax(dim=-1).gather(-1, last))
        return torch.cat(tokens, dim=1), torch.cat(scores, dim=1)


def _draw(logits_BV: torch.Tensor, uniforms_B: torch.Tensor, top_k: int) -> torch.Tensor:
    """Tokens (B,) by inverting the cumulative distribution at `uniforms_B` in [0, 1)."""
    if top_k:
        logits_BV, candidates_BV = logits_BV.topk(min(top_k, logits_BV.shape[-1]), dim=-1)
    cumulative_BV = logits_BV.double().softmax(dim=-1).cumsum(dim=-1)
    # Scaled by the total, which may fall short of 1 by a rounding error, as may the product below it.
    targets_B1 = (uniforms_B * cumulative_BV[:, -1]).unsqueeze(-1)
    choice_B1 = torch.searchsorted(cumulative_BV, targets_B1, right=True).clamp(max=logits_BV.shape[-1] - 1)
    return (candidates_BV.gather(-1, choice_B1) if top_k else choice_B1).squeeze(-1)
