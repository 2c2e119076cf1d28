"""QueST behind the policy contract: observation -> context tokens -> skill tokens -> actions.

Post-training changes the prior alone, so a decision is recorded as its context tokens (not the
observation) and the skill tokens drawn: a few hundred bytes to a few kilobytes.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ript_ray.policies.contract import Decisions
from ript_ray.policies.module_state import load_module_arrays, module_arrays
from ript_ray.policies.quest.settings import QuestSettings
from ript_ray.policies.quest.skill_prior import SkillPrior
from ript_ray.policies.quest.skill_vae import SkillVAE
from ript_ray.policies.text import hashed_text
from ript_ray.types import Arrays

PRIOR = "policy_prior"


class StateEncoder(nn.Module):
    """A low-dimensional sensor: standardised, then one linear map."""

    offset: torch.Tensor
    scale: torch.Tensor

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.register_buffer("offset", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.projection = nn.Sequential(nn.Linear(dim, width))

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """(B, dim) -> (B, width)."""
        return self.projection((state - self.offset) / self.scale)


class QuestPolicy(nn.Module):
    """The whole policy; always in evaluation mode except inside the supervised stages."""

    def __init__(self, settings: QuestSettings, *, action_dim: int, state_dims: Mapping[str, int]):
        """Build the policy with random weights (drawn from torch's global generator).

        Args:
            settings: Sizes and sampling.
            action_dim: Entries of an action, A.
            state_dims: Name and length of each low-dimensional sensor.
        """
        super().__init__()
        self.settings = settings
        s = settings
        self.lowdim_encoders = nn.ModuleDict(
            {name: StateEncoder(dim, s.state_width) for name, dim in sorted(state_dims.items())}
        )
        self.obs_proj = nn.Linear(s.state_width * len(state_dims), s.prior_width)
        self.task_encoder = nn.Linear(s.text_features, s.prior_width)
        self.autoencoder = SkillVAE(
            action_dim=action_dim,
            chunk_length=s.chunk_length,
            fsq_levels=s.fsq_levels,
            width=s.skill_width,
            num_layers=s.skill_layers,
            dropout=s.dropout,
        )
        self.policy_prior = SkillPrior(
            vocabulary=math.prod(s.fsq_levels),
            num_tokens=self.autoencoder.num_tokens,
            width=s.prior_width,
            num_heads=s.prior_heads,
            num_layers=s.prior_layers,
            dropout=s.dropout,
        )
        self.eval()

    def fit_standardizer(self, observations: Arrays, *, min_scale: float) -> None:
        """Set offset and scale of each sensor to mean and standard deviation of observations (N, dim).

        Args:
            observations: One array per low-dimensional sensor.
            min_scale: Smallest scale, in the sensor's units. A sensor that hardly moves in few
                demonstrations must not turn a small change at test time into a huge input.
        """
        for name, encoder in self.lowdim_encoders.items():
            assert isinstance(encoder, StateEncoder)
            states = torch.as_tensor(observations[name], dtype=torch.float32)
            encoder.offset.copy_(states.mean(0))
            encoder.scale.copy_(states.std(0, correction=0).clamp(min=min_scale))

    def context_tokens(self, observations: Mapping[str, torch.Tensor], instructions: Sequence[str]) -> torch.Tensor:
        """Context (B, 2, D): the task token and the observation token."""
        states = [encoder(observations[name]) for name, encoder in self.lowdim_encoders.items()]
        texts = np.stack([hashed_text(text, self.settings.text_features) for text in instructions])
        device = self.obs_proj.weight.device
        task_token = self.task_encoder(torch.from_numpy(texts).to(device))
        return torch.stack([task_token, self.obs_proj(torch.cat(states, dim=-1))], dim=1)

    @torch.no_grad()
    def act(
        self, observations: Arrays, instructions: Sequence[str], generators: Sequence[np.random.Generator]
    ) -> Decisions:
        """Decide for B rollouts; see `Policy.act`."""
        device = self.obs_proj.weight.device
        tensors = {name: torch.as_tensor(observations[name], device=device) for name in self.lowdim_encoders}
        context_BLD = self.context_tokens(tensors, instructions)
        tokens_BU, log_probs_BU = self.policy_prior.sample(
            context_BLD, generators, top_k=self.settings.top_k, temperature=self.settings.temperature
        )
        actions_BCA = self.autoencoder.decode_tokens(tokens_BU)[:, : self.settings.num_executed]
        return Decisions(
            actions_BCA=actions_BCA.clamp(-1.0, 1.0).cpu().numpy(),
            record={"context": context_BLD.cpu().numpy(), "tokens": tokens_BU.cpu().numpy().astype(np.int32)},
            log_probs_BU=log_probs_BU.cpu().numpy(),
            valid_BU=np.ones(tokens_BU.shape, dtype=np.bool_),
        )

    def log_probs(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities (N, U) of the recorded tokens, with gradients to the prior."""
        return self.policy_prior.log_probs(record["context"], record["tokens"].long())

    def trainable(self) -> dict[str, nn.Parameter]:
        """The prior's parameters: encoders and autoencoder stay as the supervised stages left them."""
        return {name: value for name, value in self.named_parameters() if name.startswith(PRIOR)}

    def state_arrays(self) -> Arrays:
        """Every parameter and buffer, copied."""
        return module_arrays(self)

    def load_state_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over every parameter and buffer; see `Policy.load_state_arrays`."""
        load_module_arrays(self, arrays)
