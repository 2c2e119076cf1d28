"""Configuration of OpenVLA-OFT: which published files it is built from, and how it samples."""

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from ript_envs.contract import EnvironmentSpec
from ript_ray.checks import require, require_at_least, require_positive
from ript_ray.errors import CheckpointError
from ript_ray.policies.base import PolicyConfig
from ript_ray.storage.hashed_dir import sha256_of
from ript_ray.types import Arrays

if TYPE_CHECKING:
    from ript_ray.policies.openvla_oft.policy import OpenVLAOFTPolicy

SampledScale = Literal["as-scored", "unclamped"]
Precision = Literal["float32", "bfloat16"]

BASE_SUFFIXES = (".json", ".safetensors", ".pt")
"""Endings of the files of a checkpoint folder that the policy is built from."""


@dataclass(frozen=True)
class OpenVLAOFTConfig(PolicyConfig):
    """OpenVLA-OFT, fine-tuned through LoRA: the base model is read from its folder, and no checkpoint contains it.

    Attributes:
        kind: Always openvla-oft.
        checkpoint: Folder with the published files of a fine-tuned OpenVLA-OFT; it is only read. Required.
        scale_head: File with its published Laplace scale head (LIBERO_*_scale_header.pth). Without one and without an
            adaptor, the scale head has random weights: train it before post-training.
        adaptor: Folder that RIPT-VLA saved, to continue from: LoRA adapter and both heads.
        suite: Whose statistics of `dataset_statistics.json` units are converted by: that of the benchmark, such as
            libero_goal.
        cameras: Cameras of the benchmark, in the order of training. Source: OpenVLA-OFT.
        sensors: Sensors of the benchmark that make up the robot's state, in the order of training. Source: OpenVLA-OFT.
        chunk_length: Actions per query; all are executed. Source: OpenVLA-OFT, 8 for LIBERO.
        precision: Type that the model is stored and computed in; what is trained is stored in float32. Source: authors'
            code, bfloat16 for all.
        lora_rank: Rank of a new adapter, at least 1. Source: paper, 32.
        lora_alpha: Scale of a new adapter, times its rank; above 0. Source: authors' code, 16.
        sampled_scale: Scale that rollouts sample with: as-scored (clamped to the range that log-probabilities are
            computed with) or unclamped. Source: authors' code, unclamped; the paper does not mention a clamp.
        scale_factor: What the sampled scale is multiplied by, and the scored one is not; above 0. Source: authors'
            code, 5 (2 for LIBERO-Spatial); paper, 1.
    """

    parameter_groups: ClassVar[dict[str, str]] = {"lora": "vla.", "action-head": "action_head."}
    semantic_fields: ClassVar[tuple[str, ...]] = ("cameras", "sensors", "suite", "chunk_length")
    is_deterministic: ClassVar[bool] = True

    kind: Literal["openvla-oft"] = field(default="openvla-oft", kw_only=True)
    checkpoint: Path | None = None
    scale_head: Path | None = None
    adaptor: Path | None = None
    suite: str = "libero_spatial"
    cameras: tuple[str, ...] = ("agentview_rgb", "eye_in_hand_rgb")
    sensors: tuple[str, ...] = ("ee_pos", "ee_ori", "gripper_states")
    chunk_length: int = 8
    precision: Precision = "bfloat16"
    lora_rank: int = 32
    lora_alpha: float = 16.0
    sampled_scale: SampledScale = "unclamped"
    scale_factor: float = 5.0

    def __post_init__(self) -> None:
        require_at_least("policy.chunk-length", self.chunk_length, 1)
        require_at_least("policy.lora-rank", self.lora_rank, 1)
        require_positive("policy.lora-alpha", self.lora_alpha)
        require_positive("policy.scale-factor", self.scale_factor)

    def build(self, spec: EnvironmentSpec) -> "OpenVLAOFTPolicy":
        """Load the policy; a new adapter and a new scale head have random weights. See `PolicyConfig.build`.

        Raises:
            CheckpointError: A file is missing, damaged, or does not fit.
            ConfigError: The policy does not fit the benchmark.
        """
        from ript_ray.policies.openvla_oft.policy import load_policy

        return load_policy(self, self._folder(), spec)

    def check_arrays(self, spec: EnvironmentSpec, arrays: Arrays) -> None:
        """Check that arrays fit, without memory for the model; see `PolicyConfig.check_arrays`."""
        from ript_ray.policies.openvla_oft.policy import empty_policy

        empty_policy(self, self._folder(), spec).load_state_arrays(arrays)

    def base_sha256(self) -> str:
        """Return the SHA-256 over the names and hashes of all files that `build` reads."""
        files = [path for path in _listed(self._folder()) if path.suffix in BASE_SUFFIXES]
        files += [self.scale_head] if self.scale_head else []
        files += _listed(self.adaptor) if self.adaptor else []
        hashes = [f"{path.name} {_sha256(path, path.stat().st_size, path.stat().st_mtime_ns)}\n" for path in files]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def require_trained_on(self, label: str) -> None:
        """Check that units are converted by the statistics of the benchmark's suite, perturbed or not."""
        require(
            label == self.suite or label.startswith(f"{self.suite}_"),
            f"policy.suite is {self.suite}, but the benchmark is {label}: actions would be converted by the statistics "
            "of other demonstrations; use a checkpoint trained on the suite, with its policy.suite",
        )

    def card(self, spec: EnvironmentSpec, arrays: Arrays) -> dict[str, str]:
        """Return rows for the model card."""
        return {
            "architecture": "OpenVLA-OFT (Kim et al. 2025) with a Laplace scale head and a LoRA adapter (RIPT-VLA)",
            "base model": f"{self._folder().name}, SHA-256 {self.base_sha256()}",
            "trained parameters": f"{sum(array.size for array in arrays.values()):,}",
            "cameras": ", ".join(self.cameras),
            "sensors": ", ".join(self.sensors),
            "actions": f"{spec.action_dim} entries, all {self.chunk_length} executed",
        }

    def unused_fields(self) -> dict[str, str]:
        """Return the fields without effect; see `PolicyConfig.unused_fields`."""
        replaced = ("scale_head", "lora_rank", "lora_alpha")
        return dict.fromkeys(replaced, "policy.adaptor has its own") if self.adaptor else {}

    def _folder(self) -> Path:
        require(
            self.checkpoint is not None,
            "policy.checkpoint must name a folder with the published files of OpenVLA-OFT, such as a download of "
            "openvla-7b-oft-finetuned-libero-spatial",
        )
        assert self.checkpoint is not None
        return self.checkpoint


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error


@functools.lru_cache(maxsize=100)
def _sha256(path: Path, num_bytes: int, changed_ns: int) -> str:
    """Return the SHA-256 of a file, computed once: a published model has 15 GB."""
    return sha256_of(path)
