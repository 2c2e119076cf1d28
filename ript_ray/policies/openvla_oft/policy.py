"""The OpenVLA-OFT policy: acts by a Laplace distribution around the regressed actions, and scores what was done.

It is run in two passes, as RIPT-VLA trains it: no gradient reaches what comes before the action slots. So a decision is
recorded as its inputs and the sampled chunk, and one unit is scored per action of the chunk. The supervised stages
(`stages`) train other parts of it as well, and those before the slots through both passes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ript_envs.contract import EnvironmentSpec
from ript_ray.checks import require
from ript_ray.policies.base import Decisions
from ript_ray.policies.openvla_oft.architecture import Architecture, read_architecture
from ript_ray.policies.openvla_oft.checkpoint import (
    ADAPTER_CONFIG_FILE,
    empty_openvla_oft,
    load_adaptor,
    load_openvla_oft,
    load_scale_head,
)
from ript_ray.policies.openvla_oft.config import Base, OpenVLAOFTConfig
from ript_ray.policies.openvla_oft.distributions import DISTRIBUTIONS, LOG_SCALE_RANGE
from ript_ray.policies.openvla_oft.export import save_adaptor
from ript_ray.policies.openvla_oft.images import Normalization
from ript_ray.policies.openvla_oft.inputs import NUM_TOKENS, PROMPT, PROPRIO, Inputs
from ript_ray.policies.openvla_oft.lora import TRAINED, add_lora, new_config, read_config
from ript_ray.policies.openvla_oft.model import EncodedContext, OpenVLAOFT
from ript_ray.policies.openvla_oft.prompt import HashedPrompts, LlamaPrompts
from ript_ray.policies.openvla_oft.statistics import Statistics
from ript_ray.policies.state_dict import array_of, copy_into
from ript_ray.types import Arrays

if TYPE_CHECKING:
    import peft

CHUNK = "chunk"
"""Name of the array of a record with the sampled actions, normalized."""

STATISTICS = "statistics."
"""Beginning of the names of the statistics in checkpoints."""

MUST_FIT = {
    "action_dim": "entries of an action",
    "proprio_dim": "entries of the policy's sensors",
    "num_cameras": "cameras",
    "chunk_length": "actions per chunk",
}
"""Sizes of a fine-tuned model that the benchmark and the settings must have."""

PATCHES = "patches"
"""Name of the array of an encoding with the embeddings of the images' patches."""

MARGIN = 1e-6
"""Smallest probability of a sample's tails: a chunk must be finite."""


class OpenVLAOFTPolicy(nn.Module):
    """The whole policy. Whatever is trained is in float32.

    Attributes:
        settings: How the policy samples.
        inputs: What the model reads, and the units of its actions.
        distribution: Distribution of the normalized actions.
    """

    def __init__(self, settings: OpenVLAOFTConfig, model: OpenVLAOFT, inputs: Inputs):
        """Take over a model that has an adapter.

        Args:
            settings: How the policy samples.
            model: The model; from here on the policy's own.
            inputs: What the model reads, from the same folder.
        """
        super().__init__()
        self.settings = settings
        self.inputs = inputs
        self._model = model
        self.distribution = DISTRIBUTIONS[settings.distribution]
        for parameter in self._kept().values():
            parameter.data = parameter.data.float()
        self.taking_gradients(self.trainable())

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the adapter of the language model's layers and the action head."""
        return self._parameters_of(is_post_trained)

    def regressed(self) -> dict[str, nn.Parameter]:
        """Return what the regression of actions trains: all of a new model, or a base model's adapter and heads."""
        return self._parameters_of(lambda name: is_regressed(name, self.settings.base))

    def scale_head(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the scale head."""
        return self._parameters_of(lambda name: name.startswith("scale_head."))

    def taking_gradients(self, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Let these parameters take gradients, and no others; the same parameters."""
        self._model.requires_grad_(False)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        return parameters

    def state_arrays(self) -> Arrays:
        """Return copies of all that any stage trains, and of the statistics if they are measured by one."""
        return {name: array_of(value) for name, value in self._kept_tensors().items()}

    def load_state_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Copy arrays into the policy; see `Policy.load_state_arrays`."""
        copy_into(self._kept_tensors(), arrays, "the weights do not fit the policy")

    @torch.no_grad()
    def act(
        self, observations: Arrays, instructions: Sequence[str], generators: Sequence[np.random.Generator]
    ) -> Decisions:
        """Sample a chunk for each row; see `Policy.act`."""
        record = self.inputs.record(observations, instructions)
        mean, log_scale = self.mean_and_log_scale({name: torch.from_numpy(array) for name, array in record.items()})
        uniforms = np.stack([generator.uniform(MARGIN, 1 - MARGIN, mean.shape[1:]) for generator in generators])
        is_clamped = self.settings.sampled_scale == "as-scored"
        sampled_scale = log_scale.clamp(*LOG_SCALE_RANGE) if is_clamped else log_scale
        sampled_scale = sampled_scale + math.log(self.settings.scale_factor)
        chunk_BCA = self.distribution.quantiles(mean, sampled_scale, torch.from_numpy(uniforms).to(mean))
        log_probs_BC = self._score(mean, log_scale, chunk_BCA).cpu().numpy()
        return Decisions(
            actions_BCA=self.inputs.environment_actions(chunk_BCA),
            record={**record, CHUNK: chunk_BCA.cpu().numpy()},
            log_probs_BU=log_probs_BC,
            valid_BU=np.ones_like(log_probs_BC, np.bool_),
        )

    @torch.no_grad()
    def act_deterministically(self, observations: Arrays, instructions: Sequence[str]) -> NDArray[np.float32]:
        """Act on the mean; see `DeterministicPolicy`."""
        record = self.inputs.record(observations, instructions)
        mean, _ = self.mean_and_log_scale({name: torch.from_numpy(array) for name, array in record.items()})
        return self.inputs.environment_actions(mean)

    def log_probs(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the log-probability (N, C) of each recorded action; see `Policy.log_probs`."""
        mean, log_scale = self.mean_and_log_scale(record)
        return self._score(mean, log_scale, record[CHUNK].to(mean))

    @torch.no_grad()
    def encode(self, record: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the embeddings of the images' patches, which RIPT does not change; see `EncodingPolicy.encode`."""
        return {PATCHES: self._patches(record)}

    def shard_units(self) -> list[nn.Module]:
        """Return the blocks of towers and language model, its embeddings and the projector; see `ShardablePolicy`."""
        towers, language = self._model.vla.vision_backbone, self._model.vla.language_model
        blocks = (*towers.featurizer.blocks, *towers.fused_featurizer.blocks, *language.model.layers)
        return [*blocks, language.model.embed_tokens, language.lm_head, self._model.vla.projector]

    def save_adaptor(self, folder: Path) -> None:
        """Write adapter and heads to a new folder in the authors' layout; see `export.save_adaptor`."""
        save_adaptor(self._model, folder, base=str(self.settings.checkpoint or "trained from nothing"))

    def mean_and_log_scale(
        self, record: Mapping[str, torch.Tensor], *, through_context: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log-scale of the normalized actions, float32 (B, C, A); the log-scale is not clamped.

        Args:
            record: Rows of recorded decisions.
            through_context: Whether gradients reach what comes before the action slots, too.
        """
        return self.heads(self.slots(record, through_context=through_context))

    def slots(self, record: Mapping[str, torch.Tensor], *, through_context: bool = False) -> torch.Tensor:
        """Return the hidden states (B, slots, D) that the heads read; see `mean_and_log_scale`."""
        with torch.set_grad_enabled(through_context and torch.is_grad_enabled()):
            encoded = self._read_context(record)
        with self._autocast():
            return self._model.slots(encoded)

    def heads(self, slots_BSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log-scale of the normalized actions, float32 (B, C, A)."""
        with self._autocast():
            mean, log_scale = self._model.heads(slots_BSD)
        return mean.float(), log_scale.float()

    def _read_context(self, record: Mapping[str, torch.Tensor]) -> EncodedContext:
        device = self._device
        prompt, num_tokens = record[PROMPT].to(device), record[NUM_TOKENS].to(device)
        patches = record[PATCHES] if PATCHES in record else self._patches(record)
        with self._autocast():
            longest = int(num_tokens.max())
            context = self._model.context(patches, record[PROPRIO].to(device), prompt[:, :longest], num_tokens)
            return self._model.encode(context)

    def _patches(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        with self._autocast():
            return self._model.embed_images(self.inputs.pixels(record).to(self._device))

    def _parameters_of(self, is_chosen: Callable[[str], bool]) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self._model.named_parameters() if is_chosen(name)}

    def _kept(self) -> dict[str, nn.Parameter]:
        return self._parameters_of(lambda name: is_kept(name, self.settings.base))

    def _kept_tensors(self) -> dict[str, torch.Tensor]:
        if self.settings.base == "fine-tuned":
            return {**self._kept()}
        measured = self.inputs.statistics.arrays()  # shared with these tensors: what is copied into them is used
        return {**self._kept(), **{STATISTICS + name: torch.from_numpy(array) for name, array in measured.items()}}

    def _score(self, mean: torch.Tensor, log_scale: torch.Tensor, chunk_BCA: torch.Tensor) -> torch.Tensor:
        """Return the log-probability (B, C) of each action, summed over its entries. Source: RIPT-VLA's code."""
        return self.distribution.log_prob(mean, log_scale.clamp(*LOG_SCALE_RANGE), chunk_BCA).sum(-1)

    def _autocast(self) -> torch.autocast:
        """Compute in bfloat16 with weights in float32.

        A context each for what is computed with and without gradients: within one, a weight that was converted without
        gradients is used again, and would get none.
        """
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16")

    @property
    def _device(self) -> torch.device:
        return self._model.action_head.model.fc1.weight.device


def is_post_trained(name: str) -> bool:
    """Whether RIPT trains a parameter: the adapter of the language model's layers, or the action head."""
    return (name.startswith(f"vla.{TRAINED}") and ".lora_" in name) or name.startswith("action_head.")


def is_kept(name: str, base: Base) -> bool:
    """Whether checkpoints hold a parameter: whatever a stage trains, and what is in no file of the base model."""
    if base == "new":
        return ".lm_head." not in name  # never run
    if base == "pretrained":
        return not name.startswith("vla.") or ".lora_" in name
    return is_post_trained(name) or name.startswith("scale_head.")


def is_regressed(name: str, base: Base) -> bool:
    """Whether the regression of actions trains a parameter."""
    if name.startswith("scale_head.") or (base == "new" and (".lora_" in name or ".embed_tokens." in name)):
        return False
    return is_kept(name, base)


def load_policy(settings: OpenVLAOFTConfig, spec: EnvironmentSpec) -> OpenVLAOFTPolicy:
    """Build the policy, from the files that its settings name if there are any; see `OpenVLAOFTConfig.build`."""
    inputs = _inputs(settings, spec)
    dtype = getattr(torch, settings.precision)
    if settings.base == "new":
        model = OpenVLAOFT(_sizes(settings, spec)).to(dtype)
    else:
        sizes = _sizes(settings, spec) if settings.base == "pretrained" else None
        model = load_openvla_oft(settings.folder, dtype=dtype, sizes=sizes)
    if settings.adaptor:
        load_adaptor(model, settings.adaptor)
    else:
        add_lora(model.vla, _lora_config(settings))
        if settings.scale_head:
            load_scale_head(model, settings.scale_head)
    return OpenVLAOFTPolicy(settings, model, inputs)


def empty_policy(settings: OpenVLAOFTConfig, spec: EnvironmentSpec) -> OpenVLAOFTPolicy:
    """Build the policy on torch's meta device: names, shapes and types, no values."""
    inputs = _inputs(settings, spec)
    model = empty_openvla_oft(_sizes(settings, spec), dtype=getattr(torch, settings.precision))
    add_lora(model.vla, _lora_config(settings), is_loaded=True)
    return OpenVLAOFTPolicy(settings, model, inputs)


def _lora_config(settings: OpenVLAOFTConfig) -> "peft.LoraConfig":
    if settings.adaptor:
        return read_config(settings.adaptor / ADAPTER_CONFIG_FILE)
    return new_config(rank=settings.lora_rank, alpha=settings.lora_alpha)


def _sizes(settings: OpenVLAOFTConfig, spec: EnvironmentSpec) -> Architecture:
    """Return the sizes of the model; those of a fine-tuned one must fit the benchmark."""
    wanted: dict[str, Any] = {
        "chunk_length": settings.chunk_length,
        "action_dim": spec.action_dim,
        "proprio_dim": sum(spec.state_dims[name] for name in settings.sensors),
        "num_cameras": len(settings.cameras),
    }
    if settings.base == "new":
        return settings.new.architecture(**wanted)
    architecture = read_architecture(settings.folder)
    if settings.base == "pretrained":
        return replace(architecture, **wanted)
    for name, text in MUST_FIT.items():
        needed = getattr(architecture, name)
        require(
            wanted[name] == needed,
            f"OpenVLA-OFT in {settings.folder} needs {needed} {text}; for {spec.name} there are {wanted[name]}",
        )
    return architecture


def _inputs(settings: OpenVLAOFTConfig, spec: EnvironmentSpec) -> Inputs:
    """Return what prepares the inputs, after a check that they have the sizes of the model."""
    sizes, names = _sizes(settings, spec), {"cameras": settings.cameras, "sensors": settings.sensors}
    if settings.base == "fine-tuned":
        return Inputs.read(settings.folder, suite=settings.suite, **names)
    statistics = Statistics.unmeasured(sizes.action_dim, sizes.proprio_dim)
    if settings.base == "pretrained":
        return Inputs(Normalization.read(settings.folder), statistics, LlamaPrompts(settings.folder), **names)
    return Inputs(Normalization.published(sizes.dino.image_size), statistics, HashedPrompts(), **names)
