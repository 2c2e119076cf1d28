"""The sizes of an OpenVLA-OFT model: read from the `config.json` of its folder, or those of a new, small one."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from ript_ray.checks import require, require_between
from ript_ray.errors import CheckpointError
from ript_ray.storage.reading import read_object

CONFIG_FILE = "config.json"

SIZES_KEY = "fixture_vision_dims"
"""Key of the sizes of other vision towers than the published ones, which `config.json` names without their sizes."""

PATCH_SIZE = 14
"""Side of a patch of both vision towers, in pixels."""

EXPECTED = {
    "model_type": "openvla",
    "arch_specifier": "no-align+fused-gelu-mlp",
    "use_fused_vision_backbone": True,
    "image_resize_strategy": "resize-naive",
}
"""Fields of `config.json` that choose another model or input pipeline than ours if they have another value."""


@dataclass(frozen=True)
class Tower:
    """Sizes of a vision transformer.

    Attributes:
        embed_dim: Width.
        depth: Number of blocks; the features are what the last but one gives.
        num_heads: Attention heads.
        mlp_ratio: Width of the MLP, in multiples of `embed_dim`.
        patch_size: Side of a patch, in pixels.
        image_size: Side of an image, in pixels.
        register_tokens: Registers of DINOv2, which come after its class token.
        layer_norm_eps: Epsilon of its normalizations.
    """

    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    patch_size: int = PATCH_SIZE
    image_size: int = 224
    register_tokens: int = 0
    layer_norm_eps: float = 1e-6

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2


TOWERS = {
    "vit_large_patch14_reg4_dinov2.lvd142m": Tower(1024, 24, 16, 4.0, register_tokens=4),
    "vit_so400m_patch14_siglip_224": Tower(1152, 27, 16, 3.7362),
}
"""The published towers, DINOv2 and SigLIP, by their names in timm. Source: timm 0.9.10."""


@dataclass(frozen=True)
class Language:
    """Sizes of the language model; the defaults are those of Llama-2-7B, which `config.json` does not repeat.

    Attributes:
        hidden_size: Width.
        intermediate_size: Width of the MLP.
        num_attention_heads: Attention heads.
        num_hidden_layers: Layers.
        num_key_value_heads: Heads of keys and values.
        vocab_size: Tokens, with those that fill it up to a multiple of 64.
        rms_norm_eps: Epsilon of its normalizations.
        rope_theta: Base of its rotary positions.
        pad_token_id: Token whose embedding is zero.
    """

    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_attention_heads: int = 32
    num_hidden_layers: int = 32
    num_key_value_heads: int = 32
    vocab_size: int = 32064
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    pad_token_id: int = 32000


@dataclass(frozen=True)
class Architecture:
    """Sizes of the whole model; the defaults of the last four are those of LIBERO, which `config.json` does not have.

    Attributes:
        dino: The first vision tower.
        siglip: The second one.
        language: The language model.
        chunk_length: Actions per query, C.
        action_dim: Entries of an action, A.
        proprio_dim: Entries of the robot's state.
        num_cameras: Images per query.
    """

    dino: Tower = TOWERS["vit_large_patch14_reg4_dinov2.lvd142m"]
    siglip: Tower = TOWERS["vit_so400m_patch14_siglip_224"]
    language: Language = field(default_factory=Language)
    chunk_length: int = 8
    action_dim: int = 7
    proprio_dim: int = 8
    num_cameras: int = 2

    @property
    def num_slots(self) -> int:
        """Positions of the language model whose hidden states give the actions, one per entry of each action."""
        return self.chunk_length * self.action_dim


@dataclass(frozen=True)
class NewModel:
    """Sizes of a model that is trained from nothing. The defaults are ours, for two CPU cores.

    Attributes:
        image_size: Side of the images, in pixels, a multiple of 14, from 14 to 448.
        vision_width: Width of both vision towers, a multiple of their heads, at most 8,192.
        vision_layers: Layers of both vision towers that are run, 1 to 100.
        vision_heads: Attention heads of both vision towers, at least 1.
        language_width: Width of the language model and of the heads, an even multiple of its heads, at most 16,384.
        language_layers: Layers of the language model, 1 to 100.
        language_heads: Attention heads of the language model, at least 1.
    """

    image_size: int = 56
    vision_width: int = 96
    vision_layers: int = 3
    vision_heads: int = 4
    language_width: int = 128
    language_layers: int = 3
    language_heads: int = 4

    def __post_init__(self) -> None:
        require(
            0 < self.image_size <= 448 and self.image_size % PATCH_SIZE == 0,
            f"policy.new.image-size must be a multiple of {PATCH_SIZE}, from {PATCH_SIZE} to 448, "
            f"not {self.image_size}",
        )
        for name, most in (("vision_layers", 100), ("vision_width", 8192), ("vision_heads", 8192)):
            require_between(f"policy.new.{name.replace('_', '-')}", getattr(self, name), 1, most)
        for name, most in (("language_layers", 100), ("language_width", 16384), ("language_heads", 8192)):
            require_between(f"policy.new.{name.replace('_', '-')}", getattr(self, name), 1, most)
        for part, step in (("vision", self.vision_heads), ("language", 2 * self.language_heads)):
            width = getattr(self, f"{part}_width")
            require(width % step == 0, f"policy.new.{part}-width must be a multiple of {step}, not {width}")

    def architecture(self, *, chunk_length: int, action_dim: int, proprio_dim: int, num_cameras: int) -> Architecture:
        """Return all sizes, with those that the benchmark gives."""
        # One block more than is run: the features are what the last but one gives.
        tower = Tower(self.vision_width, self.vision_layers + 1, self.vision_heads, 4.0, image_size=self.image_size)
        language = Language(
            hidden_size=self.language_width,
            intermediate_size=4 * self.language_width,
            num_attention_heads=self.language_heads,
            num_hidden_layers=self.language_layers,
            num_key_value_heads=self.language_heads,
        )
        return Architecture(
            replace(tower, register_tokens=4), tower, language, chunk_length, action_dim, proprio_dim, num_cameras
        )


Sizes = TypeVar("Sizes", Tower, Language)


def read_architecture(folder: Path) -> Architecture:
    """Read the sizes of the model in a folder.

    Raises:
        CheckpointError: Its `config.json` is missing, damaged, or describes another kind of model.
    """
    path = folder / CONFIG_FILE
    config = read_object(path)
    for key, wanted in EXPECTED.items():
        if config.get(key) != wanted:
            raise CheckpointError(f"{path}: {key} is {config.get(key)!r}; only {wanted!r} is supported")
    dino, siglip = _towers(config, path)
    return Architecture(dino, siglip, _sizes(Language, config.get("text_config"), f"{path}: text_config"))


def _towers(config: Mapping[str, Any], path: Path) -> tuple[Tower, Tower]:
    if SIZES_KEY in config:
        sizes, where = config[SIZES_KEY], f"{path}: {SIZES_KEY}"
        if not isinstance(sizes, dict):
            raise CheckpointError(f"{where} is no object")
        dino, siglip = (
            _sizes(Tower, sizes.get(name), f"{where}.{name}") for name in ("featurizer", "fused_featurizer")
        )
        return dino, siglip
    names = config.get("timm_model_ids")
    if names != [*TOWERS]:
        raise CheckpointError(f"{path}: timm_model_ids is {names!r}; only {[*TOWERS]} is supported")
    dino, siglip = TOWERS.values()
    return dino, siglip


def _sizes(kind: type[Sizes], given: Any, where: str) -> Sizes:
    """Read numbers; other keys are not of interest, and must not reach a library."""
    if not isinstance(given, dict):
        raise CheckpointError(f"{where} is no object")
    known = {entry.name: given[entry.name] for entry in fields(kind) if entry.name in given}
    for entry in fields(kind):
        value = known.get(entry.name, 0)
        types = (int,) if entry.type is int else (int, float)
        if type(value) not in types or value < 0:
            raise CheckpointError(f"{where}.{entry.name} must be a number of at least 0, not {value!r}")
    try:
        return kind(**known)
    except TypeError as error:
        raise CheckpointError(f"{where} is not complete: {error}") from error
