"""Configuration of OpenVLA-OFT: which published files it is built from, and how it samples."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from ript_envs.contract import EnvironmentSpec
from ript_ray.checks import require, require_at_least, require_positive
from ript_ray.errors import CheckpointError
from ript_ray.policies.base import PolicyConfig
from ript_ray.policies.openvla_oft.architecture import NewModel
from ript_ray.policies.openvla_oft.versions import require_versions
from ript_ray.policies.supervised import Augmentation, SFTConfig, SupervisedStage, SupervisedTask
from ript_ray.storage.hashed_dir import sha256_of
from ript_ray.types import Arrays

if TYPE_CHECKING:
    from ript_ray.policies.openvla_oft.policy import OpenVLAOFTPolicy

SampledScale = Literal["as-scored", "unclamped"]
Precision = Literal["float32", "bfloat16"]
DistributionName = Literal["laplace", "gaussian"]
Base = Literal["fine-tuned", "pretrained", "new"]

BASE_SUFFIXES = (".json", ".safetensors", ".pt")
"""Endings of the files of a checkpoint folder that the policy is built from."""


@dataclass(frozen=True)
class OpenVLAOFTSFT(SFTConfig):
    """OpenVLA-OFT's supervised stages.

    Attributes:
        kind: Always openvla-oft.
        regression: Stage 1, actions given images, state and instruction, by L1, or by mean squared error with
            policy.distribution gaussian. Source: OpenVLA-OFT, 150,000 steps of 64 at 5e-4, gradients not clipped; it
            lets the context see the action slots, ours is trained as it acts.
        scale: Stage 2, the scale head, by the likelihood of the demonstrations' actions, all else frozen. Source:
            paper, 500 steps; the rest is ours, as the authors released no code of this stage.
        augmentation: Augmentation of the images in stage 1. Source: OpenVLA-OFT crops at random, as a shift of up to 5
            pixels does, and changes colors by up to 0.2, the hue by 0.05.
    """

    stages: ClassVar[tuple[str, ...]] = ("regression", "scale")

    kind: Literal["openvla-oft"] = field(default="openvla-oft", kw_only=True)
    regression: SupervisedStage = field(
        default_factory=lambda: SupervisedStage(
            num_steps=150_000, batch_size=64, learning_rate=5e-4, weight_decay=0.01, max_grad_norm=1e6
        )
    )
    scale: SupervisedStage = field(
        default_factory=lambda: SupervisedStage(num_steps=500, batch_size=64, learning_rate=5e-4, weight_decay=0.01)
    )
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(color=0.1, color_share=1.0, shift=5))

    def tasks(self) -> tuple[SupervisedTask, ...]:
        """Return the regression of actions and the stage of the scale head."""
        from ript_ray.policies.openvla_oft.stages import RegressionTask, ScaleTask

        return RegressionTask(self.regression, self.augmentation), ScaleTask(self.scale)


@dataclass(frozen=True)
class OpenVLAOFTConfig(PolicyConfig):
    """OpenVLA-OFT, fine-tuned through LoRA: the base model is read from its folder, and no checkpoint contains it.

    Attributes:
        kind: Always openvla-oft.
        base: What the policy is built on: fine-tuned (a published OpenVLA-OFT in policy.checkpoint), pretrained (an
            OpenVLA in policy.checkpoint, without heads: the stage regression adapts all of it), or new (random weights
            of the sizes policy.new: the stage regression trains all of it, without the adapter).
        checkpoint: Folder with the published files of the base model; it is only read. Required unless base is new.
        new: Sizes of a model with base new.
        scale_head: File with a published Laplace scale head (LIBERO_*_scale_header.pth). Without one and without an
            adaptor, the scale head has random weights: the stage scale trains it.
        adaptor: Folder that RIPT-VLA saved, to continue from: LoRA adapter and both heads.
        suite: With base fine-tuned, whose statistics of `dataset_statistics.json` units are converted by: that of the
            benchmark, such as libero_goal. Otherwise, the stage regression measures them.
        cameras: Cameras of the benchmark, in the order of training. Source: OpenVLA-OFT.
        sensors: Sensors of the benchmark that make up the robot's state, in the order of training. Source: OpenVLA-OFT.
        chunk_length: Actions per query; all are executed. Source: OpenVLA-OFT, 8 for LIBERO.
        precision: Type that the model is stored and computed in; what is trained is stored in float32. Source: authors'
            code, bfloat16 for all.
        distribution: Distribution of each action around the mean: laplace, for heads trained by L1, as the published
            ones are, or gaussian, for heads trained by mean squared error. Source: paper.
        lora_rank: Rank of a new adapter, at least 1. Source: paper, 32.
        lora_alpha: Scale of a new adapter, times its rank; above 0. Source: authors' code, 16.
        sampled_scale: Scale that rollouts sample with: as-scored (clamped to the range that log-probabilities are
            computed with) or unclamped. Source: authors' code, unclamped; the paper does not mention a clamp.
        scale_factor: What the sampled scale is multiplied by, and the scored one is not; above 0. Source: authors'
            code, 5 (2 for LIBERO-Spatial); paper, 1.
    """

    sft_type: ClassVar[type[SFTConfig]] = OpenVLAOFTSFT
    parameter_groups: ClassVar[dict[str, str]] = {"lora": "vla.", "action-head": "action_head."}
    semantic_fields: ClassVar[tuple[str, ...]] = ("base", "cameras", "sensors", "suite", "chunk_length", "distribution")
    is_deterministic: ClassVar[bool] = True
    is_shardable: ClassVar[bool] = True

    kind: Literal["openvla-oft"] = field(default="openvla-oft", kw_only=True)
    base: Base = field(default="fine-tuned", metadata={"before": "fine-tuned"})
    checkpoint: Path | None = None
    new: NewModel = field(default_factory=NewModel, metadata={"before": NewModel()})
    scale_head: Path | None = None
    adaptor: Path | None = None
    suite: str = "libero_spatial"
    cameras: tuple[str, ...] = ("agentview_rgb", "eye_in_hand_rgb")
    sensors: tuple[str, ...] = ("ee_pos", "ee_ori", "gripper_states")
    chunk_length: int = 8
    precision: Precision = "bfloat16"
    distribution: DistributionName = field(default="laplace", metadata={"before": "laplace"})
    lora_rank: int = 32
    lora_alpha: float = 16.0
    sampled_scale: SampledScale = "unclamped"
    scale_factor: float = 5.0

    def __post_init__(self) -> None:
        files = [name for name in ("checkpoint", "scale_head", "adaptor") if getattr(self, name)]
        require(
            self.base != "new" or not files,
            f"policy.base is new, a model of random weights: leave out policy.{', policy.'.join(files)}".replace(
                "_", "-"
            ),
        )
        require_at_least("policy.chunk-length", self.chunk_length, 1)
        require_at_least("policy.lora-rank", self.lora_rank, 1)
        require_positive("policy.lora-alpha", self.lora_alpha)
        require_positive("policy.scale-factor", self.scale_factor)

    def build(self, spec: EnvironmentSpec) -> "OpenVLAOFTPolicy":
        """Load the policy; a new adapter and a new scale head have random weights. See `PolicyConfig.build`.

        Raises:
            CheckpointError: A file is missing, damaged, or does not fit.
            ConfigError: The policy does not fit the benchmark.
            MissingPackageError: The extra `openvla` is not installed.
        """
        require_versions()
        from ript_ray.policies.openvla_oft.policy import load_policy

        return load_policy(self, spec)

    def build_empty(self, spec: EnvironmentSpec, instructions: Sequence[str]) -> "OpenVLAOFTPolicy":
        """Build the policy without memory for it, from the folder's small files; see `PolicyConfig.build_empty`."""
        require_versions()
        from ript_ray.policies.openvla_oft.policy import empty_policy

        return empty_policy(self, spec)

    def check_arrays(self, spec: EnvironmentSpec, arrays: Arrays) -> None:
        """Check that arrays fit, without memory for the model; see `PolicyConfig.check_arrays`."""
        self.build_empty(spec, ()).load_state_arrays(arrays)

    def base_sha256(self) -> str | None:
        """Return the SHA-256 over the names and hashes of all files that `build` reads; None if it reads none."""
        if self.base == "new":
            return None
        files = [path for path in _listed(self.folder) if path.suffix in BASE_SUFFIXES]
        files += [self.scale_head] if self.scale_head else []
        files += _listed(self.adaptor) if self.adaptor else []
        hashes = [f"{path.name} {_sha256(path, path.stat().st_size, path.stat().st_mtime_ns)}\n" for path in files]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def finished_stages(self) -> tuple[str, ...]:
        """Return the regression with a fine-tuned base, and the scale head's stage with a file that has one.

        Raises:
            ConfigError: The folder of the fine-tuned base is not given.
        """
        if self.base != "fine-tuned":
            return ()
        self._require_checkpoint()
        regression, scale = OpenVLAOFTSFT.stages
        return (regression, scale) if self.scale_head or self.adaptor else (regression,)

    def require_trained_on(self, label: str) -> None:
        """Check that units are converted by the statistics of the benchmark's suite, perturbed or not."""
        require(
            self.base != "fine-tuned" or label == self.suite or label.startswith(f"{self.suite}_"),
            f"policy.suite is {self.suite}, but the benchmark is {label}: actions would be converted by the statistics "
            "of other demonstrations; use a checkpoint trained on the suite, with its policy.suite",
        )

    def card(self, spec: EnvironmentSpec, arrays: Arrays) -> dict[str, str]:
        """Return rows for the model card."""
        return {
            "architecture": "OpenVLA-OFT (Kim et al. 2025) with a Laplace scale head and a LoRA adapter (RIPT-VLA)",
            "base model": "none" if self.base == "new" else f"{self.folder.name}, SHA-256 {self.base_sha256()}",
            "parameters in checkpoints": f"{sum(array.size for array in arrays.values()):,}",
            "cameras": ", ".join(self.cameras),
            "sensors": ", ".join(self.sensors),
            "actions": f"{spec.action_dim} entries, all {self.chunk_length} executed",
        }

    def unused_fields(self) -> dict[str, str]:
        """Return the fields without effect; see `PolicyConfig.unused_fields`."""
        replaced = ("scale_head", "lora_rank", "lora_alpha")
        unused = dict.fromkeys(replaced, "policy.adaptor has its own") if self.adaptor else {}
        if self.base != "fine-tuned":
            unused["suite"] = f"policy.base is {self.base}: the statistics are measured"
        if self.base != "new":
            unused["new"] = f"policy.base is {self.base}"
        return unused

    @property
    def folder(self) -> Path:
        """The folder of the base model.

        Raises:
            ConfigError: None is given.
        """
        self._require_checkpoint()
        assert self.checkpoint is not None
        return self.checkpoint

    def _require_checkpoint(self) -> None:
        require(
            self.checkpoint is not None,
            "policy.checkpoint must name a folder with the published files of OpenVLA-OFT, such as a download of "
            "openvla-7b-oft-finetuned-libero-spatial",
        )


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error


@functools.lru_cache(maxsize=100)
def _sha256(path: Path, num_bytes: int, changed_ns: int) -> str:
    """Return the SHA-256 of a file, computed once: a published model has 15 GB."""
    return sha256_of(path)
