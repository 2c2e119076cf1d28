"""QueST's supervised stages: the skill autoencoder, then the prior over its tokens.

Source: Mete et al. 2024 (QueST), sections 4.1 and 4.2; stage names as in RIPT-VLA section 5.1.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ript_ray.config import SupervisedStage
from ript_ray.optimizer import decay_groups
from ript_ray.policies.quest.policy import PRIOR, QuestPolicy
from ript_ray.sft.demonstrations import Windows

Progress = Callable[[int, float], None]
"""Called after each optimiser step with its number, from 1, and its loss."""


def train_autoencoder(
    policy: QuestPolicy, windows: Windows, *, stage: SupervisedStage, seed: int, progress: Progress
) -> float:
    """Stage 1: reconstruct action chunks through the quantiser, by mean absolute error.

    Returns:
        Mean loss of the last tenth of the steps, in units of the action range's half.
    """
    chunks = torch.from_numpy(windows.chunks_WCA)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        return F.l1_loss(policy.autoencoder(chunks[rows]), chunks[rows])

    parameters = {f"autoencoder.{name}": value for name, value in policy.autoencoder.named_parameters()}
    return _fit(policy, parameters, loss, stage=stage, num_windows=len(chunks), seed=seed, progress=progress)


def train_prior(
    policy: QuestPolicy, windows: Windows, *, stage: SupervisedStage, seed: int, progress: Progress
) -> float:
    """Stage 2: predict each window's skill tokens from its observation and instruction, by cross-entropy.

    Encoders and prior train; the autoencoder is frozen.

    Returns:
        Mean loss of the last tenth of the steps, in nats per token.
    """
    observations = {name: torch.from_numpy(array) for name, array in windows.observations.items()}
    with torch.no_grad():
        tokens_WU = policy.autoencoder.tokens(torch.from_numpy(windows.chunks_WCA))

    def loss(rows: torch.Tensor) -> torch.Tensor:
        chosen = {name: tensor[rows] for name, tensor in observations.items()}
        context = policy.context_tokens(chosen, [windows.instructions[row] for row in rows])
        logits_BUV = policy.policy_prior.logits(context, tokens_WU[rows])
        return F.cross_entropy(logits_BUV.flatten(0, 1), tokens_WU[rows].flatten())

    parameters = {name: value for name, value in policy.named_parameters() if not name.startswith("autoencoder")}
    assert any(name.startswith(PRIOR) for name in parameters)
    return _fit(policy, parameters, loss, stage=stage, num_windows=len(tokens_WU), seed=seed, progress=progress)


def _fit(
    policy: QuestPolicy,
    parameters: dict[str, nn.Parameter],
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    *,
    stage: SupervisedStage,
    num_windows: int,
    seed: int,
    progress: Progress,
) -> float:
    torch.manual_seed(seed)  # dropout
    order = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(decay_groups(parameters.items(), stage.weight_decay), lr=stage.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, T_max=stage.num_steps, eta_min=0.1 * stage.learning_rate
    )
    losses = []
    policy.train()
    for step in range(1, stage.num_steps + 1):
        rows = torch.from_numpy(order.integers(num_windows, size=min(stage.batch_size, num_windows)))
        loss = loss_of(rows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), stage.max_grad_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress(step, losses[-1])
    policy.eval()
    return float(np.mean(losses[-max(1, stage.num_steps // 10) :]))
