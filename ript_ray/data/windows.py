"""The windows that the supervised stages train on: what was seen, and the actions that followed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ript_ray.data.demonstrations import Demonstration, Rows


@dataclass(frozen=True)
class Windows:
    """Every window of every demonstration: an observation and the chunk of actions that followed it.

    Attributes:
        instructions: W strings.
        observations: W rows per sensor.
        chunks_WCA: float32; a chunk that reaches past the end repeats the last action.
    """

    instructions: tuple[str, ...]
    observations: Mapping[str, Rows]
    chunks_WCA: NDArray[np.float32]

    def seen(self, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """The observations of some windows."""
        return {name: torch.from_numpy(np.asarray(seen[rows])) for name, seen in self.observations.items()}


class Joined:
    """Several rows one behind the other, read where they lie."""

    def __init__(self, parts: Sequence[Rows]):
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        parts = np.searchsorted(self._starts, rows, side="right") - 1
        found = [self._parts[part][np.array([row - self._starts[part]])] for part, row in zip(parts, rows, strict=True)]
        return np.concatenate(found)


def make_windows(demonstrations: Sequence[Demonstration], chunk_length: int) -> Windows:
    """All windows of `chunk_length` actions, one starting at every step."""
    chunks, instructions = [], []
    for demonstration in demonstrations:
        actions_TA = demonstration.actions_TA
        padded = np.concatenate([actions_TA, np.repeat(actions_TA[-1:], chunk_length - 1, axis=0)])
        chunks += [padded[start : start + chunk_length] for start in range(len(actions_TA))]
        instructions += [demonstration.instruction] * len(actions_TA)
    names = demonstrations[0].observations
    return Windows(
        instructions=tuple(instructions),
        observations={name: _join([d.observations[name] for d in demonstrations]) for name in names},
        chunks_WCA=np.stack(chunks),
    )


def _join(parts: Sequence[Rows]) -> Rows:
    if all(isinstance(part, np.ndarray) for part in parts):
        joined: Rows = np.concatenate([np.asarray(part) for part in parts])
        return joined
    return Joined(parts)
