"""The QueST policy: observation -> context tokens -> skill tokens -> actions.

Post-training changes only the prior, so a decision is recorded as its context tokens (instead of the observation) and
the sampled skill tokens: a few hundred bytes to a few kilobytes, whatever the cameras.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ript_ray.policies.base import Decisions
from ript_ray.policies.embedding import Embedding
from ript_ray.policies.quest.config import TEXT, QuestConfig
from ript_ray.policies.quest.encoders import ImageEncoder, StateEncoder
from ript_ray.policies.quest.skill_prior import SkillPrior, score
from ript_ray.policies.quest.skill_vae import SkillVAE
from ript_ray.policies.state_dict import ModulePolicy
from ript_ray.policies.text import TextFeatures, hashed_text, index_of
from ript_ray.types import Arrays

PRIOR = "policy_prior"

CANDIDATES = "candidates"
"""Key of the record for the tokens that each token was drawn from; present only if the score depends on them."""


class QuestPolicy(ModulePolicy):
    """The whole policy; in evaluation mode except in the supervised stages."""

    def __init__(self, settings: QuestConfig, *, action_dim: int, state_dims: Mapping[str, int]):
        """Build the policy with random weights from torch's global generator.

        Args:
            settings: Inputs, sizes and sampling.
            action_dim: Entries of an action, A.
            state_dims: Length of each low-dimensional sensor, by name.
        """
        super().__init__()
        self.settings = settings
        s = settings
        self.image_encoders = nn.ModuleDict(
            {
                name: ImageEncoder(size=s.image_size, channels=s.image_channels, width=s.image_width)
                for name in s.cameras
            }
        )
        self.lowdim_encoders = nn.ModuleDict(
            {name: StateEncoder(state_dims[name], s.state_width, is_standardized=s.standardize) for name in s.sensors}
        )
        observation_width = s.image_width * len(s.cameras) + s.state_width * len(s.sensors)
        self.obs_proj = nn.Linear(observation_width, s.prior_width)
        self.task_encoder: Embedding | nn.Linear
        if s.task_input == "index":
            self.task_encoder = Embedding(s.num_tasks, s.prior_width)
        else:
            self.task_encoder = nn.Linear(s.text_features, s.prior_width)
        self.text_features = TextFeatures(s.text_features)
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

        Does nothing if sensors are not standardized.

        Args:
            observations: One array per low-dimensional sensor.
            min_scale: Smallest scale, in the sensor's units, so that a sensor that hardly varies in a few
                demonstrations does not turn small changes at test time into huge inputs.
        """
        if not self.settings.standardize:
            return
        for name, encoder in self.lowdim_encoders.items():
            assert isinstance(encoder, StateEncoder)
            states = torch.as_tensor(observations[name], dtype=torch.float32)
            encoder.offset.copy_(states.mean(0))
            encoder.scale.copy_(states.std(0, correction=0).clamp(min=min_scale))

    def context_tokens(self, observations: Mapping[str, torch.Tensor], instructions: Sequence[str]) -> torch.Tensor:
        """Return the context (B, 2, D): the task token and the observation token.

        Args:
            observations: Per camera uint8 (B, height, width, 3), per sensor float32 (B, dim).
            instructions: One per row.

        Raises:
            ConfigError: The policy does not know an instruction.
        """
        encoded = [encoder(observations[name]) for name, encoder in self.image_encoders.items()]
        encoded += [encoder(observations[name]) for name, encoder in self.lowdim_encoders.items()]
        task_token = self.task_encoder(self._task_inputs(instructions).to(self.obs_proj.weight.device))
        return torch.stack([task_token, self.obs_proj(torch.cat(encoded, dim=-1))], dim=1)

    def _task_inputs(self, instructions: Sequence[str]) -> torch.Tensor:
        match self.settings.task_input:
            case "hashed":
                vectors = [hashed_text(text, self.settings.text_features) for text in instructions]
                return torch.from_numpy(np.stack(vectors))
            case "features":
                return torch.from_numpy(self.text_features(instructions))
            case "index":
                return torch.tensor([index_of(text, self.settings.instructions) for text in instructions])

    @torch.no_grad()
    def act(
        self, observations: Arrays, instructions: Sequence[str], generators: Sequence[np.random.Generator]
    ) -> Decisions:
        """Sample the actions of B rollouts; see `Policy.act`."""
        device = self.obs_proj.weight.device
        names = self.settings.cameras + self.settings.sensors
        tensors = {name: torch.as_tensor(observations[name], device=device) for name in names}
        with self._autocast():
            context_BLD = self.context_tokens(tensors, instructions).float()
            sampled = self.policy_prior.sample(
                context_BLD, generators, top_k=self.settings.top_k, temperature=self.settings.temperature
            )
            actions_BCA = self.autoencoder.decode_tokens(sampled.tokens_BU)[:, : self.settings.num_executed].float()
        record = {"context": context_BLD, "tokens": sampled.tokens_BU.int()}
        if self.settings.scored_against == "candidates" and sampled.candidates_BUK is not None:
            record[CANDIDATES] = sampled.candidates_BUK.int()
        return Decisions(
            actions_BCA=actions_BCA.clamp(-1.0, 1.0).cpu().numpy(),
            record={name: tensor.cpu().numpy() for name, tensor in record.items()},
            log_probs_BU=self._score(sampled.logits_BUV, record).cpu().numpy(),
            valid_BU=np.ones(sampled.tokens_BU.shape, dtype=np.bool_),
        )

    def log_probs(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the log-probabilities (N, U) of the recorded tokens, with gradients to the prior.

        `QuestConfig.scored_against` selects the distribution.
        """
        with self._autocast():
            logits_BUV = self.policy_prior.logits(record["context"], record["tokens"].long())
        return self._score(logits_BUV, record)

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        """Compute matrix products in the type of `QuestConfig.precision`, with weights in float32."""
        if self.settings.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.obs_proj.weight.device.type, torch.bfloat16)

    def _score(self, logits_BUV: torch.Tensor, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        tokens_BU, logits_BUV = record["tokens"].long(), logits_BUV.float()
        if self.settings.scored_against == "all":
            return score(logits_BUV, tokens_BU)
        candidates_BUK = record[CANDIDATES].long() if self.settings.top_k else None
        return score(logits_BUV / self.settings.temperature, tokens_BU, candidates_BUK)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the prior: post-training does not change encoders and autoencoder."""
        return {name: value for name, value in self.named_parameters() if name.startswith(PRIOR)}

    def state_arrays(self) -> Arrays:
        """Return copies of every parameter and buffer, and of the text features."""
        texts = {TEXT + text: vector.copy() for text, vector in self.text_features.vectors.items()}
        return {**super().state_arrays(), **texts}

    def load_state_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Load every parameter and buffer, and the text features; see `Policy.load_state_arrays`."""
        known = TextFeatures(self.settings.text_features)
        if self.settings.task_input == "features":
            known.add({name.removeprefix(TEXT): array for name, array in arrays.items() if name.startswith(TEXT)})
            arrays = {name: array for name, array in arrays.items() if not name.startswith(TEXT)}
        super().load_state_arrays(arrays)
        self.text_features = known
