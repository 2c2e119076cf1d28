"""Configuration of QueST and of its supervised stages. The defaults are the published model's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from ript_envs.contract import EnvironmentSpec
from ript_ray.checks import require, require_at_least, require_between, require_positive
from ript_ray.errors import CheckpointError
from ript_ray.policies.base import PolicyConfig
from ript_ray.policies.supervised import Augmentation, SFTConfig, SupervisedStage, SupervisedTask
from ript_ray.types import Arrays

if TYPE_CHECKING:
    from ript_ray.policies.quest.policy import QuestPolicy

TaskInput = Literal["hashed", "features", "index"]
ScoredAgainst = Literal["all", "candidates"]

ACTIONS_PER_TOKEN = 4
"""Actions per skill token: the product of the autoencoder's strides."""

PIXELS_PER_FEATURE = 8
"""Downsampling factor of the image encoder: pixels per entry of its last feature map, along either side."""

# Far above any policy, so that a mistyped or forged size is named before anything of that size is built:
MAX_WIDTH = 65_536
MAX_LAYERS = 1_000
MAX_CHUNK = 1_000
MAX_IMAGE_SIZE = 4_096
MAX_VOCABULARY = 1_000_000

TEXT = "text/"
"""Prefix of the arrays with an instruction's text features, followed by the instruction."""


@dataclass(frozen=True)
class QuestSFT(SFTConfig):
    """QueST's supervised stages.

    Attributes:
        kind: Always quest.
        autoencoder: Stage 1, actions <-> skill tokens, by L1 reconstruction.
        prior: Stage 2, skill tokens given instruction and observation, by cross-entropy.
        augmentation: Augmentation of the images in stage 2.
        noisy_tokens: Whether the target tokens of stage 2 are recomputed in each step with the autoencoder's dropout
            on, instead of once without. Source: the authors' code does so; the paper does not mention it.
        min_state_scale: Smallest standard deviation used to standardize a state entry, in the entry's units (metres
            for positions), above 0. Source: ours.
    """

    stages: ClassVar[tuple[str, ...]] = ("autoencoder", "prior")

    kind: Literal["quest"] = field(default="quest", kw_only=True)
    autoencoder: SupervisedStage = field(default_factory=lambda: SupervisedStage(num_steps=20_000, batch_size=256))
    prior: SupervisedStage = field(default_factory=lambda: SupervisedStage(num_steps=20_000, batch_size=128))
    augmentation: Augmentation = field(default_factory=Augmentation)
    noisy_tokens: bool = False
    min_state_scale: float = 0.05

    def __post_init__(self) -> None:
        require_positive("sft.min-state-scale", self.min_state_scale)

    def tasks(self) -> tuple[SupervisedTask, ...]:
        """Return the autoencoder stage and the prior stage."""
        from ript_ray.policies.quest.stages import AutoencoderTask, PriorTask

        return AutoencoderTask(self.autoencoder, self), PriorTask(self.prior, self)


@dataclass(frozen=True)
class QuestConfig(PolicyConfig):
    """Inputs, sizes and sampling of the QueST policy. Source of every size: the published 20 M model.

    Attributes:
        kind: Always quest.
        cameras: Cameras of the benchmark that the policy reads; at least one camera or sensor. Source: ours, none;
            the published policies read one or two.
        sensors: Low-dimensional sensors of the benchmark that the policy reads.
        standardize: Whether sensors are standardized by mean and standard deviation of the demonstrations. Source:
            ours; the published policies read raw sensors.
        task_input: Encoding of instructions: hashed (feature hashing of the words), features (text features of a
            language model, stored with the weights), index (position in `instructions`, with a learned embedding).
            Source: ours, hashed; published: features (LIBERO), index (MetaWorld).
        instructions: The instructions of task_input index, at most num_tasks; otherwise empty.
        num_tasks: Learned embeddings of task_input index, 1 to 1,000,000.
        chunk_length: Actions decoded per query, in environment steps; a multiple of 4, 4 to 1,000.
        num_executed: Actions executed before the next query, 1 to chunk_length.
        fsq_levels: Levels of the skill quantizer, each at least 2; their product is the vocabulary, at most
            1,000,000.
        skill_width: Width of the autoencoder, a multiple of 8, at most 65,536.
        skill_layers: Layers of the autoencoder's encoder and decoder, each 1 to 1,000.
        prior_width: Width of the prior, a multiple of 2 * prior_heads, at most 65,536.
        prior_layers: Layers of the prior, 1 to 1,000.
        prior_heads: Attention heads of the prior, 1 to 65,536.
        state_width: Width of the encoder of each low-dimensional sensor, 1 to 65,536.
        image_size: Side of the encoder's input images, in pixels, a multiple of 8, at most 4,096. Larger images are
            scaled down.
        image_channels: Channels of the first stage of each camera's encoder, 1 to 65,536.
        image_width: Width of each camera's encoder, 1 to 65,536.
        text_features: Length of an instruction's vector with task_input hashed or features, 1 to 65,536.
        text_file: File with the text features of task_input features, as `ript-ray embed-text` writes it; if not given,
            the one of this user's cache. What it lacks is computed by CLIP ViT-B/32, where that is on this machine, and
            added. Read where a run begins; then they are part of the policy. Source: QueST computes them at each start.
        dropout: Dropout probability in the supervised stages, 0 to below 1.
        top_k: Sample tokens among the top_k most likely ones; 0 for all.
        temperature: Sampling temperature, above 0 and finite.
        scored_against: Distribution that scores a sampled token: all (all tokens at temperature 1) or candidates (the
            top_k that it was drawn from, at the sampling temperature). Source: authors' code, all; see
            docs/decisions/0007-scored-distribution.md.
        precision: Type that matrix products are computed in when the policy acts and in RIPT; bfloat16 is for GPUs.
            Weights, moments and log-probabilities are float32 all the same. Source: authors' code, float32.
    """

    sft_type: ClassVar[type[SFTConfig]] = QuestSFT
    semantic_fields: ClassVar[tuple[str, ...]] = (
        "cameras",
        "sensors",
        "standardize",
        "task_input",
        "instructions",
        "fsq_levels",
        "chunk_length",
    )

    kind: Literal["quest"] = field(default="quest", kw_only=True)
    cameras: tuple[str, ...] = ()
    sensors: tuple[str, ...] = ("state",)
    standardize: bool = True
    task_input: TaskInput = "hashed"
    instructions: tuple[str, ...] = ()
    num_tasks: int = 50
    chunk_length: int = 32
    num_executed: int = 8
    fsq_levels: tuple[int, ...] = (8, 5, 5, 5)
    skill_width: int = 256
    skill_layers: tuple[int, int] = (2, 4)
    prior_width: int = 384
    prior_layers: int = 6
    prior_heads: int = 6
    state_width: int = 128
    image_size: int = 128
    image_channels: int = 64
    image_width: int = 256
    text_features: int = 512
    text_file: Path | None = field(default=None, metadata={"before": None})
    dropout: float = 0.1
    top_k: int = 5
    temperature: float = 1.0
    scored_against: ScoredAgainst = "all"
    precision: Literal["float32", "bfloat16"] = field(default="float32", metadata={"before": "float32"})

    def __post_init__(self) -> None:
        self._check_inputs()
        require(
            0 < self.chunk_length <= MAX_CHUNK and self.chunk_length % ACTIONS_PER_TOKEN == 0,
            f"policy.chunk-length must be a multiple of {ACTIONS_PER_TOKEN}, from {ACTIONS_PER_TOKEN} to "
            f"{MAX_CHUNK}, not {self.chunk_length}",
        )
        require_between("policy.num-executed", self.num_executed, 1, self.chunk_length)
        require(
            len(self.fsq_levels) > 0 and min(self.fsq_levels) >= 2 and math.prod(self.fsq_levels) <= MAX_VOCABULARY,
            "policy.fsq-levels must be one or more numbers, each at least 2, with a product of at most "
            f"{MAX_VOCABULARY}, not {self.fsq_levels}",
        )
        require(
            0 < self.skill_width <= MAX_WIDTH and self.skill_width % 8 == 0,
            f"policy.skill-width must be a multiple of 8, at most {MAX_WIDTH}, not {self.skill_width}",
        )
        for layers in self.skill_layers:
            require_between("policy.skill-layers", layers, 1, MAX_LAYERS)
        for name in ("prior_heads", "state_width", "text_features", "image_channels", "image_width"):
            require_between(f"policy.{name.replace('_', '-')}", getattr(self, name), 1, MAX_WIDTH)
        require_between("policy.prior-layers", self.prior_layers, 1, MAX_LAYERS)
        require(
            0 < self.prior_width <= MAX_WIDTH and self.prior_width % (2 * self.prior_heads) == 0,
            f"policy.prior-width must be a multiple of 2 * prior-heads = {2 * self.prior_heads}, "
            f"at most {MAX_WIDTH}, not {self.prior_width}",
        )
        require(0 <= self.dropout < 1, f"policy.dropout must be from 0 to below 1, not {self.dropout}")
        require_at_least("policy.top-k", self.top_k, 0)
        require_positive("policy.temperature", self.temperature)

    def build(self, spec: EnvironmentSpec) -> "QuestPolicy":
        """Build the policy with random weights; see `PolicyConfig.build`."""
        from ript_ray.policies.quest.policy import QuestPolicy

        state_dims = {name: spec.state_dims[name] for name in self.sensors}
        return QuestPolicy(self, action_dim=spec.action_dim, state_dims=state_dims)

    def build_empty(self, spec: EnvironmentSpec, instructions: Sequence[str] = ()) -> "QuestPolicy":
        """Build the policy without memory for it; see `PolicyConfig.build_empty`."""
        import numpy as np
        import torch

        with torch.device("meta"):
            policy = self.build(spec)
        if self.task_input == "features":
            policy.text_features.add(dict.fromkeys(instructions, np.zeros(self.text_features, np.float32)))
        return policy

    def with_instructions(self, arrays: Arrays, instructions: Sequence[str]) -> Arrays:
        """Return the arrays with the text features of instructions that have none yet, if the policy reads them."""
        missing = [text for text in instructions if TEXT + text not in arrays]
        if self.task_input != "features" or not missing:
            return arrays
        from ript_ray.policies.clip import features_file, text_features
        from ript_ray.policies.text import TextFeatures

        found = text_features(missing, self.text_file or features_file())
        TextFeatures(self.text_features).add(found)  # refuses those of another length
        return {**arrays, **{TEXT + text: vector for text, vector in found.items()}}

    def check_arrays(self, spec: EnvironmentSpec, arrays: Arrays) -> None:
        """Check that arrays fit, without memory for a policy: sizes in a file may be out of this world."""
        try:
            policy = self.build_empty(spec)
        except (KeyError, RuntimeError, TypeError) as error:  # a foreign specification
            raise CheckpointError(f"no policy can be built for {spec.name}: {str(error).splitlines()[0]}") from error
        policy.load_state_arrays(arrays)

    def card(self, spec: EnvironmentSpec, arrays: Arrays) -> dict[str, str]:
        """Return rows for the model card."""
        num_parameters = sum(value.numel() for value in self.build_empty(spec).parameters())
        texts = [name.removeprefix(TEXT) for name in arrays if name.startswith(TEXT)]
        known = {"features": texts, "index": list(self.instructions)}.get(self.task_input)
        return {
            "architecture": "QueST: skill autoencoder and autoregressive prior over its tokens (Mete et al. 2024)",
            "parameters": f"{num_parameters:,}",
            "cameras": ", ".join(self.cameras) or "none",
            "sensors": ", ".join(f"{name} ({spec.state_dims[name]})" for name in self.sensors) or "none",
            "actions": f"{spec.action_dim} entries, {self.num_executed} of {self.chunk_length} executed",
            "instructions": "any" if known is None else "; ".join(known) or "none: imported without text features",
        }

    def unused_fields(self) -> dict[str, str]:
        """Return the fields without effect; see `PolicyConfig.unused_fields`."""
        unused: dict[str, str] = {}
        if not self.cameras:
            unused |= dict.fromkeys(("image_size", "image_channels", "image_width"), "the policy reads no camera")
        if not self.sensors:
            unused |= dict.fromkeys(("standardize", "state_width"), "the policy reads no sensor")
        is_learned = self.task_input == "index"
        other = "text_features" if is_learned else "num_tasks"
        unused |= {other: f"policy.task-input is {self.task_input}"}
        return unused if self.task_input == "features" else unused | {"text_file": unused[other]}

    def _check_inputs(self) -> None:
        names = self.cameras + self.sensors
        require(bool(names), "policy.sensors and policy.cameras must together name at least one")
        require(len(set(names)) == len(names), f"policy.sensors and policy.cameras must differ, not {names}")
        has_dot = any("." in name for name in names)
        require(not has_dot, f"policy.sensors and policy.cameras must contain no dot, not {names}")
        require(
            0 < self.image_size <= MAX_IMAGE_SIZE and self.image_size % PIXELS_PER_FEATURE == 0,
            f"policy.image-size must be a multiple of {PIXELS_PER_FEATURE}, from {PIXELS_PER_FEATURE} to "
            f"{MAX_IMAGE_SIZE}, not {self.image_size}",
        )
        require_between("policy.num-tasks", self.num_tasks, 1, MAX_VOCABULARY)
        require(
            len(set(self.instructions)) == len(self.instructions),
            f"policy.instructions must differ from each other, not {self.instructions}",
        )
        if self.task_input == "index":
            require_between("number of policy.instructions", len(self.instructions), 1, self.num_tasks)
        else:
            require(not self.instructions, f"policy.instructions require task-input index, not {self.task_input}")
