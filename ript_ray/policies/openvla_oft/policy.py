"""The OpenVLA-OFT policy: acts by a Laplace distribution around the regressed actions, and scores what was done.

It is run in two passes, as RIPT-VLA trains it: no gradient reaches what comes before the action slots. So a decision is
recorded as its inputs and the sampled chunk, and one unit is scored per action of the chunk.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ript_envs.contract import EnvironmentSpec
from ript_ray.checks import require
from ript_ray.policies.base import Decisions
from ript_ray.policies.openvla_oft.architecture import read_architecture
from ript_ray.policies.openvla_oft.checkpoint import (
    ADAPTER_CONFIG_FILE,
    empty_openvla_oft,
    load_adaptor,
    load_openvla_oft,
    load_scale_head,
)
from ript_ray.policies.openvla_oft.config import OpenVLAOFTConfig
from ript_ray.policies.openvla_oft.export import save_adaptor
from ript_ray.policies.openvla_oft.inputs import NUM_TOKENS, PROMPT, PROPRIO, Inputs
from ript_ray.policies.openvla_oft.laplace import LOG_SCALE_RANGE, log_densities, quantiles
from ript_ray.policies.openvla_oft.lora import add_lora, new_config, read_config, trained_lora
from ript_ray.policies.openvla_oft.model import EncodedContext, OpenVLAOFT
from ript_ray.policies.state_dict import copy_into
from ript_ray.types import Arrays

if TYPE_CHECKING:
    import peft

CHUNK = "chunk"
"""Name of the array of a record with the sampled actions, normalized."""

MARGIN = 1e-6
"""Smallest probability of a sample's tails: a chunk must be finite."""


class OpenVLAOFTPolicy(nn.Module):
    """The whole policy. The adapter of the language model's layers and the action head are trained, in float32."""

    def __init__(self, settings: OpenVLAOFTConfig, model: OpenVLAOFT, inputs: Inputs):
        """Take over a model that has an adapter.

        Args:
            settings: How the policy samples.
            model: The model; from here on the policy's own.
            inputs: What the model reads, from the same folder.
        """
        super().__init__()
        self.settings = settings
        self._model = model
        self._inputs = inputs
        model.requires_grad_(False)
        for name, parameter in self._kept().items():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(not name.startswith("scale_head."))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the adapter of the language model's layers and the action head."""
        return {name: value for name, value in self._kept().items() if value.requires_grad}

    def state_arrays(self) -> Arrays:
        """Return copies of what is trained here and of the scale head, which a stage before trains."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self._kept().items()}

    def load_state_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Copy arrays into the policy; see `Policy.load_state_arrays`."""
        copy_into(self._kept(), arrays, "the weights do not fit the policy")

    @torch.no_grad()
    def act(
        self, observations: Arrays, instructions: Sequence[str], generators: Sequence[np.random.Generator]
    ) -> Decisions:
        """Sample a chunk for each row; see `Policy.act`."""
        record = self._inputs.record(observations, instructions)
        mean, log_scale = self._heads({name: torch.from_numpy(array) for name, array in record.items()})
        uniforms = np.stack([generator.uniform(MARGIN, 1 - MARGIN, mean.shape[1:]) for generator in generators])
        is_clamped = self.settings.sampled_scale == "as-scored"
        sampled_scale = log_scale.clamp(*LOG_SCALE_RANGE) if is_clamped else log_scale
        sampled_scale = sampled_scale + math.log(self.settings.scale_factor)
        chunk_BCA = quantiles(mean, sampled_scale, torch.from_numpy(uniforms).to(mean))
        log_probs_BC = _score(mean, log_scale, chunk_BCA).cpu().numpy()
        return Decisions(
            actions_BCA=self._inputs.environment_actions(chunk_BCA),
            record={**record, CHUNK: chunk_BCA.cpu().numpy()},
            log_probs_BU=log_probs_BC,
            valid_BU=np.ones_like(log_probs_BC, np.bool_),
        )

    @torch.no_grad()
    def act_deterministically(self, observations: Arrays, instructions: Sequence[str]) -> NDArray[np.float32]:
        """Act on the mean; see `DeterministicPolicy`."""
        record = self._inputs.record(observations, instructions)
        mean, _ = self._heads({name: torch.from_numpy(array) for name, array in record.items()})
        return self._inputs.environment_actions(mean)

    def log_probs(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the log-probability (N, C) of each recorded action; see `Policy.log_probs`."""
        mean, log_scale = self._heads(record)
        return _score(mean, log_scale, record[CHUNK].to(mean))

    def save_adaptor(self, folder: Path) -> None:
        """Write adapter and heads to a new folder in the authors' layout; see `export.save_adaptor`."""
        save_adaptor(self._model, folder, base=str(self.settings.checkpoint))

    def _kept(self) -> dict[str, nn.Parameter]:
        lora = {f"vla.{name}": value for name, value in trained_lora(self._model.vla).items()}
        heads = {
            f"{part}.{name}": value
            for part in ("action_head", "scale_head")
            for name, value in self._model.get_submodule(part).named_parameters()
        }
        return {**lora, **heads}

    def _heads(self, record: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log-scale, float32 (B, C, A)."""
        encoded = self._encode(record)
        with self._autocast():
            mean, log_scale = self._model.heads(self._model.slots(encoded))
        return mean.float(), log_scale.float()

    @torch.no_grad()
    def _encode(self, record: Mapping[str, torch.Tensor]) -> EncodedContext:
        device = self._device
        prompt, num_tokens = record[PROMPT].to(device), record[NUM_TOKENS].to(device)
        with self._autocast():
            patches = self._model.embed_images(self._inputs.pixels(record).to(device))
            longest = int(num_tokens.max())
            context = self._model.context(patches, record[PROPRIO].to(device), prompt[:, :longest], num_tokens)
            return self._model.encode(context)

    def _autocast(self) -> torch.autocast:
        """Compute in bfloat16 with weights in float32.

        A context each for what is computed with and without gradients: within one, a weight that was converted without
        gradients is used again, and would get none.
        """
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16")

    @property
    def _device(self) -> torch.device:
        return self._model.action_head.model.fc1.weight.device


def _score(mean: torch.Tensor, log_scale: torch.Tensor, chunk_BCA: torch.Tensor) -> torch.Tensor:
    """Return the log-probability (B, C) of each action, summed over its entries. Source: RIPT-VLA's code."""
    return log_densities(mean, log_scale.clamp(*LOG_SCALE_RANGE), chunk_BCA).sum(-1)


def load_policy(settings: OpenVLAOFTConfig, folder: Path, spec: EnvironmentSpec) -> OpenVLAOFTPolicy:
    """Build the policy from the files that its settings name; see `OpenVLAOFTConfig.build`."""
    inputs = _inputs(settings, folder, spec)
    model = load_openvla_oft(folder, dtype=getattr(torch, settings.precision))
    if settings.adaptor:
        load_adaptor(model, settings.adaptor)
    else:
        add_lora(model.vla, _lora_config(settings))
        if settings.scale_head:
            load_scale_head(model, settings.scale_head)
    return OpenVLAOFTPolicy(settings, model, inputs)


def empty_policy(settings: OpenVLAOFTConfig, folder: Path, spec: EnvironmentSpec) -> OpenVLAOFTPolicy:
    """Build the policy on torch's meta device: names, shapes and types, no values."""
    inputs = _inputs(settings, folder, spec)
    model = empty_openvla_oft(folder)
    add_lora(model.vla, _lora_config(settings), is_loaded=True)
    return OpenVLAOFTPolicy(settings, model, inputs)


def _lora_config(settings: OpenVLAOFTConfig) -> "peft.LoraConfig":
    if settings.adaptor:
        return read_config(settings.adaptor / ADAPTER_CONFIG_FILE)
    return new_config(rank=settings.lora_rank, alpha=settings.lora_alpha)


def _inputs(settings: OpenVLAOFTConfig, folder: Path, spec: EnvironmentSpec) -> Inputs:
    """Read what prepares the inputs, after a check that they have the sizes of the model in the folder."""
    architecture = read_architecture(folder)
    proprio_dim = sum(spec.state_dims[name] for name in settings.sensors)
    for what, found, wanted in (
        ("entries of an action", spec.action_dim, architecture.action_dim),
        ("entries of the policy's sensors", proprio_dim, architecture.proprio_dim),
        ("cameras", len(settings.cameras), architecture.num_cameras),
        ("actions per chunk", settings.chunk_length, architecture.chunk_length),
    ):
        require(found == wanted, f"OpenVLA-OFT in {folder} needs {wanted} {what}; for {spec.name} there are {found}")
    return Inputs(folder, suite=settings.suite, cameras=settings.cameras, sensors=settings.sensors)
