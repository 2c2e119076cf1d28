"""QueST's supervised stages: the skill autoencoder, then the prior over its tokens.

Source: Mete et al. 2024 (QueST), sections 4.1 and 4.2; stage names as in RIPT-VLA section 5.1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ript_ray.policies.augmentation import augment
from ript_ray.policies.quest.config import QuestSFT
from ript_ray.policies.quest.policy import QuestPolicy
from ript_ray.policies.supervised import (
    LossFn,
    SupervisedStage,
    SupervisedTask,
    WindowBatch,
    WindowReader,
    Windows,
    compute_over,
)
from ript_ray.seeding import Purpose


@dataclass(frozen=True)
class _QuestTask(SupervisedTask):
    """Common part of both stages."""

    settings: SupervisedStage
    sft: QuestSFT

    def prepare(self, policy: QuestPolicy, windows: Windows) -> None:
        """Fit the normalization of the low-dimensional sensors to the data."""
        states = {name: np.asarray(windows.observations[name]) for name in policy.settings.sensors}
        policy.fit_standardizer(states, min_scale=self.sft.min_state_scale)


@dataclass(frozen=True)
class AutoencoderTask(_QuestTask):
    """Stage 1: reconstruct action chunks through the quantizer, by mean absolute error."""

    name = "autoencoder"
    title = "skill autoencoder"
    unit = "mean action error"
    purpose = Purpose.AUTOENCODER_STAGE
    reads_images = False

    def parameters(self, policy: QuestPolicy) -> Mapping[str, nn.Parameter]:
        """Return the autoencoder's parameters."""
        return {f"autoencoder.{name}": value for name, value in policy.autoencoder.named_parameters()}

    def reader(self, policy: QuestPolicy, windows: Windows) -> WindowReader:
        """Return a reader of nothing: only the actions matter."""
        return WindowReader(windows, names=())

    def loss_fn(self, policy: QuestPolicy, windows: Windows) -> LossFn:
        """Return the mean absolute reconstruction error, in units of half the action range."""
        chunks_WCA = torch.from_numpy(windows.chunks_WCA)

        def loss(batch: WindowBatch, _: np.random.Generator) -> torch.Tensor:
            chunks_BCA = chunks_WCA[batch.rows]
            return F.l1_loss(policy.autoencoder(chunks_BCA), chunks_BCA)

        return loss

    def error(self, policy: QuestPolicy, windows: Windows) -> float:
        """Return the mean absolute error per action entry, in units of half the action range."""
        return float(_over(self.reader(policy, windows), policy, _reconstruction_errors).mean())


@dataclass(frozen=True)
class PriorTask(_QuestTask):
    """Stage 2: predict the skill tokens of each window from observation and instruction, by cross-entropy.

    Trains the observation encoders and the prior; the autoencoder is frozen.
    """

    name = "prior"
    title = "supervised prior"
    unit = "nats per token"
    purpose = Purpose.PRIOR_STAGE
    reads_images = True

    def parameters(self, policy: QuestPolicy) -> Mapping[str, nn.Parameter]:
        """Return all trainable parameters except the autoencoder's."""
        return {
            name: value
            for name, value in policy.named_parameters()
            if value.requires_grad and not name.startswith("autoencoder")
        }

    def loss_fn(self, policy: QuestPolicy, windows: Windows) -> LossFn:
        """Return the cross-entropy, in nats per token."""
        chunks_WCA = torch.from_numpy(windows.chunks_WCA)
        fixed_WU = None if self.sft.noisy_tokens else _over(WindowReader(windows, names=()), policy, _tokens)

        def loss(batch: WindowBatch, generator: np.random.Generator) -> torch.Tensor:
            rows, observations = batch.rows, dict(batch.inputs)
            for camera in policy.settings.cameras:
                observations[camera] = augment(observations[camera], generator, self.sft.augmentation)
            with torch.no_grad():
                tokens_BU = policy.autoencoder.tokens(chunks_WCA[rows]) if fixed_WU is None else fixed_WU[rows]
            return _cross_entropy(policy, observations, windows.instructions_at(rows), tokens_BU)

        return loss

    def error(self, policy: QuestPolicy, windows: Windows) -> float:
        """Return the mean cross-entropy, in nats per token."""
        return float(_over(self.reader(policy, windows), policy, _token_losses).mean())


PerWindow = Callable[[QuestPolicy, Windows, WindowBatch], torch.Tensor]
"""Computes one row per window of a batch."""


def _over(reader: WindowReader, policy: QuestPolicy, per_window: PerWindow) -> torch.Tensor:
    """Compute for all windows in evaluation mode, then restore the policy's mode."""
    was_training = policy.training
    policy.eval()
    computed = compute_over(reader, lambda batch: per_window(policy, reader.windows, batch))
    policy.train(was_training)
    return computed


def _tokens(policy: QuestPolicy, windows: Windows, batch: WindowBatch) -> torch.Tensor:
    return policy.autoencoder.tokens(torch.from_numpy(windows.chunks_WCA[batch.rows.numpy()]))


def _reconstruction_errors(policy: QuestPolicy, windows: Windows, batch: WindowBatch) -> torch.Tensor:
    chunks_BCA = torch.from_numpy(windows.chunks_WCA[batch.rows.numpy()])
    return (policy.autoencoder(chunks_BCA) - chunks_BCA).abs().mean((1, 2))


def _token_losses(policy: QuestPolicy, windows: Windows, batch: WindowBatch) -> torch.Tensor:
    tokens_BU = _tokens(policy, windows, batch)
    loss = _cross_entropy(policy, batch.inputs, windows.instructions_at(batch.rows), tokens_BU)
    return loss.expand(len(batch.rows))


def _cross_entropy(
    policy: QuestPolicy, observations: dict[str, torch.Tensor], instructions: list[str], tokens_BU: torch.Tensor
) -> torch.Tensor:
    logits_BUV = policy.policy_prior.logits(policy.context_tokens(observations, instructions), tokens_BU)
    return F.cross_entropy(logits_BUV.flatten(0, 1), tokens_BU.flatten())
