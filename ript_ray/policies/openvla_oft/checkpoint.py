"""Loading the published files of OpenVLA-OFT and RIPT-VLA: strictly, without executing code, and one tensor at a time.

The user's folder is only read. The authors' loader rewrites the `config.json` of a local folder and copies Python files
into it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ript_ray.errors import CheckpointError, first_few
from ript_ray.policies.openvla_oft.architecture import Architecture, read_architecture
from ript_ray.policies.openvla_oft.language import new_rotary_positions
from ript_ray.policies.openvla_oft.lora import add_lora, file_name, lora_parameters, read_config
from ript_ray.policies.openvla_oft.model import (
    OpenVLA,
    OpenVLAOFT,
    new_action_head,
    new_proprio_projector,
    new_scale_head,
)
from ript_ray.policies.state_dict import state_dict_mismatches
from ript_ray.policies.torch_file import read_torch_file
from ript_ray.storage.reading import read_object, require_regular

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
HEADS_FILE = "openvla_headers.pt"
PARALLEL = "module."
"""Prefix of the names in files that were saved from a data-parallel module."""

UNUSED_ADAPTER_ENTRY = "base_model.model.language_model.lm_head.base_layer.weight"
"""What PEFT 0.11.1 writes beside the adapter: a copy of the base model's weight, of a layer that is never run."""

FLOATS = {"F32", "F16", "BF16"}
"""Types of the tensors in safetensors files that are read."""


def load_openvla_oft(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    sizes: Architecture | None = None,
) -> OpenVLAOFT:
    """Load a fine-tuned OpenVLA-OFT, all of whose parameters are frozen; its scale head is new, with random weights.

    Args:
        folder: `config.json`, the shards of the base model, the action head and the projector of the robot's state.
        device: Where the weights go, tensor by tensor: there is never a second copy of the model.
        dtype: Type of the weights, whatever their type in the files.
        sizes: Sizes of a new action head and a new projector of the robot's state, with random weights: the folder is
            that of an OpenVLA, which has neither. If not given, both are loaded.

    Raises:
        CheckpointError: A file is missing, damaged, or does not fit the model.
    """
    model = empty_openvla_oft(sizes or read_architecture(folder), dtype=dtype)
    like = torch.empty(0, device=device, dtype=dtype)
    _load_shards(model.vla, folder, like)
    with torch.device(device):
        model.vla.language_model.model.rotary_emb = new_rotary_positions(model.vla.language_model)
        model.scale_head = new_scale_head(model.architecture).to(dtype).eval()
        if sizes is not None:
            model.action_head = new_action_head(sizes).to(dtype).eval()
            model.proprio_projector = new_proprio_projector(sizes).to(dtype).eval()
            return model.requires_grad_(False)
    for part, module in (("action_head", model.action_head), ("proprio_projector", model.proprio_projector)):
        path = _only_file(folder, part)
        _assign(module, _tensors_in(read_torch_file(path), path), path, like)
    return model.requires_grad_(False)


def empty_openvla_oft(sizes: Architecture, *, dtype: torch.dtype = torch.bfloat16) -> OpenVLAOFT:
    """Return a model on torch's meta device: names and shapes, no values; see `load_openvla_oft`."""
    with torch.device("meta"):
        return OpenVLAOFT(sizes).to(dtype)


def load_scale_head(model: OpenVLAOFT, path: Path) -> None:
    """Load a scale head that the authors of RIPT-VLA published, such as `LIBERO_GOAL_scale_header.pth`.

    Raises:
        CheckpointError: The file is missing, damaged, or does not fit the model.
    """
    content = read_torch_file(path)
    head, like = model.scale_head, _like(model)
    for key, module in (("scale_trunk", head.trunk), ("log_b_head", head.log_b_head)):
        _assign(module, _tensors_in(content, path, key), path, like)


def load_adaptor(model: OpenVLAOFT, folder: Path) -> None:
    """Load a folder that RIPT-VLA saved: a LoRA adapter, which is added to the model, and both heads.

    Raises:
        CheckpointError: A file is missing, damaged, or does not fit the model.
    """
    like, path = _like(model), folder / HEADS_FILE
    content = read_torch_file(path)
    for key, module in (("action_header", model.action_head), ("scale_header", model.scale_head)):
        _assign(module, _tensors_in(content, path, key), path, like)
    add_lora(model.vla, read_config(folder / ADAPTER_CONFIG_FILE), is_loaded=True)
    adapter = lora_parameters(model.vla)
    names = {file_name(name): name for name in adapter}
    path = folder / ADAPTER_FILE
    shapes = {name: shape for name, shape in _shapes(path).items() if name != UNUSED_ADAPTER_ENTRY}
    _require_fit({name: adapter[names[name]] for name in names}, shapes, path)
    for name, tensor in _read(path, like):
        if name in names:
            _replace(model.vla, names[name], tensor)
    model.requires_grad_(False)


def _load_shards(vla: OpenVLA, folder: Path, like: torch.Tensor) -> None:
    shards = _shards(folder)
    shapes = {name: shape for path in shards for name, shape in _shapes(path).items()}
    _require_fit(vla.state_dict(), shapes, folder)
    for path in shards:
        for name, tensor in _read(path, like):
            _replace(vla, name, tensor)


def _shards(folder: Path) -> list[Path]:
    if not (folder / INDEX_FILE).exists():
        return [folder / SINGLE_FILE]
    names = read_object(folder / INDEX_FILE).get("weight_map")
    files = set(names.values()) if isinstance(names, dict) and all(isinstance(n, str) for n in names.values()) else {""}
    if strange := sorted(name for name in files if name != Path(name).name or not name.endswith(".safetensors")):
        raise CheckpointError(f"{folder / INDEX_FILE}: weight_map names {strange[0]!r}, not a file of the folder")
    return [folder / name for name in sorted(files)]


def _only_file(folder: Path, part: str) -> Path:
    """Return the file of a part, whose name has the training step: `action_head--150000_checkpoint.pt`."""
    found = sorted(folder.glob(f"{part}--*_checkpoint.pt"))
    if len(found) != 1:
        listed = ", ".join(path.name for path in found) or "none"
        raise CheckpointError(f"{folder} must have one file {part}--STEP_checkpoint.pt; it has {listed}")
    return found[0]


def _shapes(path: Path) -> dict[str, torch.Tensor]:
    """Return every entry of a safetensors file without its values."""
    require_regular(path)
    found = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no mapping
                entry = file.get_slice(name)
                if entry.get_dtype() not in FLOATS:
                    raise CheckpointError(f"{path}: {name} has type {entry.get_dtype()}, none of {sorted(FLOATS)}")
                found[name] = torch.empty(entry.get_shape(), device="meta")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return found


def _read(path: Path, like: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of a safetensors file, on the device and in the type of another one."""
    with safe_open(path, "pt", device=str(like.device)) as file:
        for name in file.keys():  # noqa: SIM118
            yield name, file.get_tensor(name).to(like)


def _tensors_in(content: object, path: Path, key: str = "") -> dict[str, torch.Tensor]:
    entries = content.get(key) if key and isinstance(content, dict) else content
    is_plain = isinstance(entries, dict) and all(
        isinstance(name, str) and type(value) is torch.Tensor and value.is_floating_point()
        for name, value in entries.items()
    )
    if not isinstance(entries, dict) or not is_plain:
        raise CheckpointError(f"{path} has no named tensors" + (f" under the key {key!r}" if key else ""))
    return {name.removeprefix(PARALLEL): value for name, value in entries.items()}


def _assign(module: nn.Module, given: Mapping[str, torch.Tensor], path: Path, like: torch.Tensor) -> None:
    _require_fit(module.state_dict(), given, path)
    for name, tensor in given.items():
        _replace(module, name, tensor.to(like))


def _require_fit(expected: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], path: Path) -> None:
    """Check names and shapes; types are converted."""
    shapes = {name: tensor.to("meta", next(iter(expected.values())).dtype) for name, tensor in given.items()}
    if mismatches := state_dict_mismatches(expected, shapes):
        raise CheckpointError("\n  ".join([f"{path} does not fit the model:", *first_few(mismatches)]))


def _replace(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put a tensor in the place of a parameter."""
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, nn.Parameter(tensor, requires_grad=False))


def _like(model: OpenVLAOFT) -> torch.Tensor:
    """Return a tensor with the device and the type of the model's parameters."""
    return model.action_head.model.fc1.weight
