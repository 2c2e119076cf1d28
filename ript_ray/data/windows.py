"""Conversion of demonstrations to training windows."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ript_ray.data.demonstrations import Demonstration
from ript_ray.policies.supervised import Rows, Windows


class Joined:
    """Several row sources, concatenated; rows are read on demand, many at a time (unlike torch's ConcatDataset)."""

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
    """Cut demonstrations into windows of `chunk_length` actions, one starting at every step."""
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
