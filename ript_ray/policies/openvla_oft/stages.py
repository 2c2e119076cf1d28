"""OpenVLA-OFT's supervised stages: regression of the demonstrations' actions, then the scale around them.

Source: Kim et al. 2025 (OpenVLA-OFT), sections IV and V, for the first; RIPT-VLA, section 4.3 and equation 2, for the
second. Both learn normalized actions, and run the model in the two passes that it acts by.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ript_ray.policies.augmentation import augment
from ript_ray.policies.openvla_oft.inputs import IMAGES
from ript_ray.policies.openvla_oft.policy import OpenVLAOFTPolicy
from ript_ray.policies.openvla_oft.statistics import Statistics
from ript_ray.policies.supervised import (
    Augmentation,
    LossFn,
    SupervisedStage,
    SupervisedTask,
    WindowBatch,
    WindowReader,
    Windows,
    compute_over,
)
from ript_ray.seeding import Purpose


class _OpenVLAOFTTask(SupervisedTask):
    """Common part of both stages."""

    def reader(self, policy: OpenVLAOFTPolicy, windows: Windows) -> WindowReader:
        """Return a reader of what a rollout would record: small images, the normalized state and the prompt."""
        names = (*policy.inputs.cameras, *policy.inputs.sensors)
        return WindowReader(windows, names, policy.inputs.record)


@dataclass(frozen=True)
class RegressionTask(_OpenVLAOFTTask):
    """Stage 1: the mean of each action, by the loss of the policy's distribution: L1 or the mean squared error."""

    settings: SupervisedStage
    augmentation: Augmentation

    name = "regression"
    title = "regression of actions"
    unit = "mean error of normalized actions"
    purpose = Purpose.REGRESSION_STAGE

    def prepare(self, policy: OpenVLAOFTPolicy, windows: Windows) -> None:
        """Measure the units of actions and of the robot's state, unless the base model was trained with its own."""
        if policy.settings.base != "fine-tuned":
            states = {name: np.asarray(windows.observations[name]) for name in policy.inputs.sensors}
            policy.inputs.statistics = Statistics.measured(windows.chunks_WCA[:, 0], policy.inputs.robot_state(states))

    def parameters(self, policy: OpenVLAOFTPolicy) -> Mapping[str, nn.Parameter]:
        """Return all of a new model, or the adapter and the heads of a base model."""
        return policy.taking_gradients(policy.regressed())

    def loss_fn(self, policy: OpenVLAOFTPolicy, windows: Windows) -> LossFn:
        """Return the mean loss per action entry."""

        def loss(batch: WindowBatch, generator: np.random.Generator) -> torch.Tensor:
            for camera in batch.inputs[IMAGES].unbind(1):
                camera.copy_(augment(camera, generator, self.augmentation))
            mean, _ = policy.mean_and_log_scale(batch.inputs, through_context=True)
            return policy.distribution.errors(_targets(policy, windows, batch) - mean).mean()

        return loss

    def error(self, policy: OpenVLAOFTPolicy, windows: Windows) -> float:
        """Return the mean absolute error per action entry, normalized."""

        def errors(batch: WindowBatch) -> torch.Tensor:
            mean, _ = policy.mean_and_log_scale(batch.inputs)
            return (_targets(policy, windows, batch) - mean).abs().mean((1, 2))

        return float(compute_over(self.reader(policy, windows), errors).mean())


@dataclass(frozen=True)
class ScaleTask(_OpenVLAOFTTask):
    """Stage 2: the scale head, by the negative log-likelihood of the demonstrations' actions; all else is frozen.

    The log-scale is not clamped, as rollouts may be sampled with the unclamped one.
    """

    settings: SupervisedStage

    name = "scale"
    title = "scale head"
    unit = "nats per action entry"
    purpose = Purpose.SCALE_STAGE

    def parameters(self, policy: OpenVLAOFTPolicy) -> Mapping[str, nn.Parameter]:
        """Return the scale head's parameters."""
        return policy.taking_gradients(policy.scale_head())

    def loss_fn(self, policy: OpenVLAOFTPolicy, windows: Windows) -> LossFn:
        """Return the negative log-likelihood, in nats per action entry."""
        return lambda batch, _: _surprise(policy, windows, batch).mean()

    def error(self, policy: OpenVLAOFTPolicy, windows: Windows) -> float:
        """Return the mean negative log-likelihood, in nats per action entry."""
        surprise = compute_over(self.reader(policy, windows), lambda batch: _surprise(policy, windows, batch))
        return float(surprise.mean())


def _targets(policy: OpenVLAOFTPolicy, windows: Windows, batch: WindowBatch) -> torch.Tensor:
    """Return the normalized actions (B, C, A) of windows."""
    return torch.from_numpy(policy.inputs.statistics.normalize_actions(windows.chunks_WCA[batch.rows.numpy()])).float()


def _surprise(policy: OpenVLAOFTPolicy, windows: Windows, batch: WindowBatch) -> torch.Tensor:
    """Return the negative log-likelihood (B, C, A) of each entry of the windows' actions."""
    with torch.no_grad():
        slots = policy.slots(batch.inputs)
    mean, log_scale = policy.heads(slots)
    return -policy.distribution.log_prob(mean.detach(), log_scale, _targets(policy, windows, batch))
