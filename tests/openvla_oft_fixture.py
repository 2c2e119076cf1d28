"""The models of OpenVLA-OFT's parity fixture (`tests/oft_fixture.py`), and what the authors' code gives as theirs."""

import functools
import json
from typing import Any, Literal

import torch
from numpy.typing import NDArray

from ript_ray.policies.openvla_oft.checkpoint import load_adaptor, load_openvla_oft, load_scale_head
from ript_ray.policies.openvla_oft.lora import TRAINED, lora_parameters
from ript_ray.policies.openvla_oft.model import Context, OpenVLAOFT
from tests.oft_fixture import CHECKPOINT, FOLDER, arrays

ADAPTOR, SCALE_HEAD = FOLDER / "ript_adaptor", FOLDER / "LIBERO_GOAL_scale_header.pth"

Case = Literal["base", "lora_all", "lora_llm_only"]
"""Without an adapter, with the fixture's, and with that one where it is zero outside the language model's layers."""


def expected() -> dict[str, NDArray]:
    return arrays("expected.npz")


@functools.cache
def meta() -> dict[str, Any]:
    return json.loads((FOLDER / "meta.json").read_text())


@functools.cache
def pixels() -> torch.Tensor:
    """What the towers read, from the fixture's cropped images."""
    normalization = json.loads((CHECKPOINT / "preprocessor_config.json").read_text())
    towers = [torch.tensor(normalization[key])[:, :, None, None] for key in ("means", "stds")]
    crops = (torch.from_numpy(arrays("images.npz")[name]) for name in ("crop_full", "crop_wrist"))
    cameras = [crop.permute(0, 3, 1, 2) / 255 for crop in crops]
    return torch.cat([(image - mean) / std for image in cameras for mean, std in zip(*towers, strict=True)], dim=1)


def new_model(case: Case) -> OpenVLAOFT:
    model = load_openvla_oft(CHECKPOINT, dtype=torch.float32)
    load_scale_head(model, SCALE_HEAD)
    if case != "base":
        load_adaptor(model, ADAPTOR)
    if case == "lora_llm_only":
        for name, value in lora_parameters(model.vla).items():
            if ".lora_B." in name and TRAINED not in name:
                value.data.zero_()
    return model


@functools.cache
def shared_model(case: Case) -> OpenVLAOFT:
    """A model that no test changes."""
    return new_model(case)


def context(model: OpenVLAOFT, rows: list[int], tasks: list[str], *, padding: int = 0) -> Context:
    """The context of observations with prompts ("task" or "task2"), filled up to the longest one and beyond.

    In the precision of the model.
    """
    dtype = next(model.parameters()).dtype
    prompts = [torch.from_numpy(expected()[f"prompt_ids/{task}"]) for task in tasks]
    proprio = torch.from_numpy(expected()["proprio_normalized"][rows]).to(dtype)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    filled = torch.full((len(rows), int(lengths.max()) + padding), 17)
    for row, prompt in zip(filled, prompts, strict=True):
        row[: len(prompt)] = prompt
    return model.context(model.embed_images(pixels()[rows].to(dtype)), proprio, filled, lengths)
