"""From what a benchmark observes to what the network reads, in two steps: what a rollout records lies between them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from ript_ray.errors import ConfigError
from ript_ray.policies.openvla_oft.images import Normalization, pixel_values, prepare
from ript_ray.policies.openvla_oft.prompt import LlamaPrompts, Prompts
from ript_ray.policies.openvla_oft.statistics import Statistics
from ript_ray.types import Arrays

MAX_TOKENS = 64
"""Longest prompt; records of all instructions have this length. Source: ours."""

IMAGES, PROPRIO, PROMPT, NUM_TOKENS = "images", "proprio", "prompt", "num_tokens"
"""Names of the arrays of a record."""


class Inputs:
    """The inputs of a policy.

    Attributes:
        statistics: Units of actions and of the robot's state.
        cameras: The cameras that are read.
        sensors: The sensors that make up the robot's state.
    """

    def __init__(
        self,
        normalization: Normalization,
        statistics: Statistics,
        prompts: Prompts,
        *,
        cameras: Sequence[str],
        sensors: Sequence[str],
    ):
        self.statistics = statistics
        self.cameras, self.sensors = tuple(cameras), tuple(sensors)
        self._normalization = normalization
        self._prompts = prompts

    @classmethod
    def read(cls, folder: Path, *, suite: str, cameras: Sequence[str], sensors: Sequence[str]) -> Self:
        """Read image processor, statistics and tokenizer of a fine-tuned model's folder.

        Raises:
            CheckpointError: A file is missing or damaged.
            ConfigError: There are no statistics of that suite.
        """
        parts = Normalization.read(folder), Statistics.read(folder, suite), LlamaPrompts(folder)
        return cls(*parts, cameras=cameras, sensors=sensors)

    def record(self, observations: Arrays, instructions: Sequence[str]) -> Arrays:
        """Return what is recorded of B observations: small images as bytes, the normalized state and the prompt.

        Raises:
            ConfigError: An instruction is too long.
        """
        size = self._normalization.size
        images = [prepare(observations[name].astype(np.uint8, copy=False), size) for name in self.cameras]
        prompts = [self._tokens(instruction) for instruction in instructions]
        return {
            IMAGES: np.stack(images, axis=1),
            PROPRIO: self.statistics.normalize_proprio(self.robot_state(observations)),
            PROMPT: np.stack([np.pad(prompt, (0, MAX_TOKENS - len(prompt))) for prompt in prompts]),
            NUM_TOKENS: np.array([len(prompt) for prompt in prompts]),
        }

    def robot_state(self, observations: Mapping[str, NDArray[np.generic]]) -> NDArray[np.generic]:
        """Return the robot's state (..., D), in its own units."""
        return np.concatenate([observations[name] for name in self.sensors], axis=-1)

    def pixels(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return what the vision towers read of recorded images, float32 (B, channels, height, width), on the CPU."""
        images = record[IMAGES].cpu().numpy()
        cameras = [pixel_values(images[:, camera], self._normalization) for camera in range(len(self.cameras))]
        return torch.from_numpy(np.concatenate(cameras, axis=1))

    def environment_actions(self, normalized: torch.Tensor) -> NDArray[np.float32]:
        """Return the benchmark's actions, float32 (B, C, A) in [-1, 1], of normalized ones."""
        actions = self.statistics.environment_actions(normalized.cpu().numpy())
        return np.clip(actions, -1.0, 1.0).astype(np.float32)

    def _tokens(self, instruction: str) -> NDArray[np.int64]:
        tokens = np.array(self._prompts.tokens(instruction))
        if len(tokens) > MAX_TOKENS:
            raise ConfigError(f"the prompt of {instruction!r} has {len(tokens)} tokens; at most {MAX_TOKENS} are read")
        return tokens
