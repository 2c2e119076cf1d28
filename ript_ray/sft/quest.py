"""QueST's supervised stages: the skill autoencoder, then the prior over its tokens.

Source: Mete et al. 2024 (QueST), sections 4.1 and 4.2; stage names as in RIPT-VLA section 5.1.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from ript_ray.config.sft import SFT
from ript_ray.data.augmentation import augment
from ript_ray.data.windows import Windows
from ript_ray.policies.quest.policy import QuestPolicy
from ript_ray.sft.trainer import SupervisedTrainer
from ript_ray.types import Stage

EVALUATION_BATCH_SIZE = 64
"""Windows of one pass without gradients."""


def begin_stage(stage: Stage, policy: QuestPolicy, windows: Windows, *, sft: SFT, seed: int) -> SupervisedTrainer:
    """Set a supervised stage up; its steps change the policy, which must be in training mode meanwhile.

    Args:
        stage: Autoencoder or prior.
        policy: What trains.
        windows: What it trains on.
        sft: Settings of both stages.
        seed: Of everything random in the stage.
    """
    if stage is Stage.AUTOENCODER:
        return _begin_autoencoder(policy, windows, sft=sft, seed=seed)
    return _begin_prior(policy, windows, sft=sft, seed=seed)


def _begin_autoencoder(policy: QuestPolicy, windows: Windows, *, sft: SFT, seed: int) -> SupervisedTrainer:
    """Stage 1: reconstruct action chunks through the quantiser, by mean absolute error."""
    chunks = torch.from_numpy(windows.chunks_WCA)

    def loss(rows: torch.Tensor, _: np.random.Generator) -> torch.Tensor:
        return F.l1_loss(policy.autoencoder(chunks[rows]), chunks[rows])

    parameters = {f"autoencoder.{name}": value for name, value in policy.autoencoder.named_parameters()}
    return SupervisedTrainer(parameters, loss, stage=sft.autoencoder, num_windows=len(chunks), seed=seed)


def _begin_prior(policy: QuestPolicy, windows: Windows, *, sft: SFT, seed: int) -> SupervisedTrainer:
    """Stage 2: predict each window's skill tokens from what is seen and the instruction, by cross-entropy.

    Encoders and prior train; the autoencoder is frozen.
    """
    chunks = torch.from_numpy(windows.chunks_WCA)
    known_WU = None if sft.noisy_tokens else torch.cat(list(_by_parts(policy, windows, _tokens)))

    def loss(rows: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        seen = windows.seen(rows.numpy())
        for camera in policy.settings.cameras:
            changes = sft.augmentation
            seen[camera] = augment(
                seen[camera],
                generator,
                color=changes.color,
                color_share=changes.color_share,
                shift=changes.shift,
            )
        with torch.no_grad():
            tokens_BU = policy.autoencoder.tokens(chunks[rows]) if known_WU is None else known_WU[rows]
        return _cross_entropy(policy, seen, [windows.instructions[row] for row in rows], tokens_BU)

    parameters = {
        name: value
        for name, value in policy.named_parameters()
        if value.requires_grad and not name.startswith("autoencoder")
    }
    return SupervisedTrainer(parameters, loss, stage=sft.prior, num_windows=len(chunks), seed=seed)


def _cross_entropy(
    policy: QuestPolicy, seen: dict[str, torch.Tensor], instructions: list[str], tokens_BU: torch.Tensor
) -> torch.Tensor:
    logits_BUV = policy.policy_prior.logits(policy.context_tokens(seen, instructions), tokens_BU)
    return F.cross_entropy(logits_BUV.flatten(0, 1), tokens_BU.flatten())


def evaluate_stage(stage: Stage, policy: QuestPolicy, windows: Windows) -> float:
    """The stage's error on windows, without dropout and augmentation.

    Returns:
        Autoencoder: mean absolute error of an action's entry, in units of the action range's half. Prior:
        cross-entropy, in nats per token.
    """
    measure = _reconstruction_errors if stage is Stage.AUTOENCODER else _token_losses
    return float(torch.cat(list(_by_parts(policy, windows, measure))).mean())


Measure = Callable[[QuestPolicy, Windows, torch.Tensor], torch.Tensor]


def _by_parts(policy: QuestPolicy, windows: Windows, measure: Measure) -> Iterator[torch.Tensor]:
    """One row per window, in evaluation mode; the policy is left in the mode it was in."""
    was_training = policy.training
    policy.eval()
    with torch.no_grad():
        for rows in torch.arange(len(windows.instructions)).split(EVALUATION_BATCH_SIZE):
            yield measure(policy, windows, rows)
    policy.train(was_training)


def _tokens(policy: QuestPolicy, windows: Windows, rows: torch.Tensor) -> torch.Tensor:
    return policy.autoencoder.tokens(torch.from_numpy(windows.chunks_WCA[rows.numpy()]))


def _reconstruction_errors(policy: QuestPolicy, windows: Windows, rows: torch.Tensor) -> torch.Tensor:
    chunks = torch.from_numpy(windows.chunks_WCA[rows.numpy()])
    return (policy.autoencoder(chunks) - chunks).abs().mean((1, 2))


def _token_losses(policy: QuestPolicy, windows: Windows, rows: torch.Tensor) -> torch.Tensor:
    instructions = [windows.instructions[row] for row in rows]
    loss = _cross_entropy(policy, windows.seen(rows.numpy()), instructions, _tokens(policy, windows, rows))
    return loss.expand(len(rows))
