"""Saving what was trained in the files that RIPT-VLA's authors save, so that peft and their code can open them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ript_ray.policies.openvla_oft.checkpoint import ADAPTER_CONFIG_FILE, ADAPTER_FILE, HEADS_FILE
from ript_ray.policies.openvla_oft.lora import config_fields, file_name, lora_parameters
from ript_ray.policies.openvla_oft.model import OpenVLAOFT
from ript_ray.storage.atomic import os_errors_as_storage_error, require_absent
from ript_ray.storage.hashed_dir import atomic_directory

SCALE_HEAD_FILE = "scale_header.pth"


def save_adaptor(model: OpenVLAOFT, folder: Path, *, base: str) -> None:
    """Write the LoRA adapter and both heads to a new folder, which `load_adaptor` and `peft.PeftModel` open.

    The scale head is in a file of its own as well, as it is published.

    Args:
        model: A model with an adapter.
        folder: The folder; it must not exist.
        base: Name or folder of the base model, which the adapter's configuration mentions.

    Raises:
        CheckpointError: The folder exists.
        StorageError: A file cannot be written; nothing is left behind.
    """
    adapter = {file_name(name): _plain(value) for name, value in lora_parameters(model.vla).items()}
    heads = {"action_header": _entries(model.action_head), "scale_header": _entries(model.scale_head)}
    with atomic_directory(folder) as unfinished:
        (unfinished / ADAPTER_CONFIG_FILE).write_text(json.dumps(config_fields(model.vla, base), indent=2))
        save_file(adapter, unfinished / ADAPTER_FILE, metadata={"format": "pt"})
        torch.save(heads, unfinished / HEADS_FILE)
        save_scale_head(model, unfinished / SCALE_HEAD_FILE)


def save_scale_head(model: OpenVLAOFT, path: Path) -> None:
    """Write the scale head to a new file, in the layout of the published ones, which `load_scale_head` opens.

    Raises:
        StorageError: The file exists or cannot be written.
    """
    require_absent(path)
    head = model.scale_head
    with os_errors_as_storage_error(path):
        torch.save({"scale_trunk": _entries(head.trunk), "log_b_head": _entries(head.log_b_head)}, path)


def _entries(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: _plain(value) for name, value in module.state_dict().items()}


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()
