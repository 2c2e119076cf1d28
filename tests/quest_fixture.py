"""The published policies with the synthetic weights of the parity fixture, and the contents of its files.

Entry i of a tensor is a sine of i with a phase determined by the tensor's name, scaled by its shape.
"""

import functools
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ript_ray.policies.quest.policy import QuestPolicy
from ript_ray.policies.quest.presets import SPECS, Variant, published

FOLDER = Path(__file__).parent / "fixtures" / "quest"
TOLERANCE = 5e-5
"""Absolute, of activations and log-probabilities in float32."""
TASKS = tuple(f"task {index}" for index in range(50))


def fixture(name: str) -> dict[str, NDArray]:
    with np.load(FOLDER / name) as file:
        return dict(file)


def spec(variant: Variant) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and type of every entry, in the published order."""
    listed = json.loads((FOLDER / "quest_state_dict_spec.json").read_text())[variant]
    return {name: (tuple(shape), dtype) for name, shape, dtype, _ in listed}


def wave(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    phase = zlib.crc32(name.encode()) % 1000 * 0.01
    return np.sin(np.arange(np.prod(shape)) * 0.37 + phase).astype(np.float32).reshape(shape)


def formula(name: str, constructed: NDArray) -> NDArray:
    base = wave(name, constructed.shape)
    if name.endswith("running_var"):
        return 1 + np.float32(0.1) * base
    if name.endswith(("num_batches_tracked", "inv_freq", "pos_x", "pos_y")):
        return constructed
    if constructed.ndim == 1:
        return 1 + np.float32(0.1) * base if name.endswith("weight") else np.float32(0.02) * base
    return base * np.float32(1.5 / np.sqrt(constructed[0].size))


def new_policy(variant: Variant) -> QuestPolicy:
    with torch.random.fork_rng():
        return published(variant, TASKS if variant == "metaworld" else ()).build(SPECS[variant])


@functools.cache
def formula_policy(variant: Variant) -> QuestPolicy:
    policy = new_policy(variant)
    policy.load_state_arrays({name: formula(name, array) for name, array in policy.state_arrays().items()})
    if variant == "libero":
        policy.text_features.add(dict(zip(("first", "second"), libero_inputs()["task_emb"], strict=True)))
    return policy


def inputs(name: str) -> dict[str, NDArray]:
    """Return the fixture's inputs at one time step, images as (height, width, color)."""
    arrays = {key.removeprefix("in_"): array for key, array in fixture(name).items() if key.startswith("in_")}
    return {
        key: np.moveaxis(array[:, 0], 1, -1) if array.ndim == 5 else array[:, 0] if array.ndim == 3 else array
        for key, array in arrays.items()
    }


def libero_inputs() -> dict[str, NDArray]:
    return inputs("quest_libero_extra.npz")
