"""From what a benchmark observes to what the network reads, in two steps: what a rollout records lies between them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ript_ray.errors import ConfigError
from ript_ray.policies.openvla_oft.images import Normalization, pixel_values, prepare
from ript_ray.policies.openvla_oft.prompt import Prompts
from ript_ray.policies.openvla_oft.statistics import Statistics
from ript_ray.types import Arrays

MAX_TOKENS = 64
"""Longest prompt; records of all instructions have this length. Source: ours."""

IMAGES, PROPRIO, PROMPT, NUM_TOKENS = "images", "proprio", "prompt", "num_tokens"
"""Names of the arrays of a record."""


class Inputs:
    """The inputs of the policy in one checkpoint folder."""

    def __init__(self, folder: Path, *, suite: str, cameras: Sequence[str], sensors: Sequence[str]):
        """Read the folder's image processor, statistics and tokenizer.

        Raises:
            CheckpointError: A file is missing or damaged.
            ConfigError: There are no statistics of that suite.
        """
        self._cameras, self._sensors = tuple(cameras), tuple(sensors)
        self._normalization = Normalization.read(folder)
        self._statistics = Statistics.read(folder, suite)
        self._prompts = Prompts(folder)

    def record(self, observations: Arrays, instructions: Sequence[str]) -> Arrays:
        """Return what is recorded of B observations: small images as bytes, the normalized state and the prompt.

        Raises:
            ConfigError: An instruction is too long.
        """
        size = self._normalization.size
        images = [prepare(observations[name].astype(np.uint8, copy=False), size) for name in self._cameras]
        state = np.concatenate([observations[name] for name in self._sensors], axis=-1)
        prompts = [self._tokens(instruction) for instruction in instructions]
        return {
            IMAGES: np.stack(images, axis=1),
            PROPRIO: self._statistics.normalize_proprio(state),
            PROMPT: np.stack([np.pad(prompt, (0, MAX_TOKENS - len(prompt))) for prompt in prompts]),
            NUM_TOKENS: np.array([len(prompt) for prompt in prompts]),
        }

    def pixels(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return what the vision towers read of recorded images, float32 (B, channels, height, width), on the CPU."""
        images = record[IMAGES].cpu().numpy()
        cameras = [pixel_values(images[:, camera], self._normalization) for camera in range(len(self._cameras))]
        return torch.from_numpy(np.concatenate(cameras, axis=1))

    def environment_actions(self, normalized: torch.Tensor) -> NDArray[np.float32]:
        """Return the benchmark's actions, float32 (B, C, A) in [-1, 1], of normalized ones."""
        actions = self._statistics.environment_actions(normalized.cpu().numpy())
        return np.clip(actions, -1.0, 1.0).astype(np.float32)

    def _tokens(self, instruction: str) -> NDArray[np.int64]:
        tokens = np.array(self._prompts.tokens(instruction))
        if len(tokens) > MAX_TOKENS:
            raise ConfigError(f"the prompt of {instruction!r} has {len(tokens)} tokens; at most {MAX_TOKENS} are read")
        return tokens
