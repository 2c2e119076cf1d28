"""LoRA by peft, on the modules that the authors' adapters have.

The authors ask PEFT 0.11.1 for `all-linear`. It matches by the last part of a module's name, so it adapts 439 modules:
all linear layers, but also the language model's unused `lm_head`, the towers' patch embeddings, which are convolutions
with the name of a linear layer, and SigLIP's unused pooling head. Only the layers of the language model are trained:
in the two-pass form no gradient reaches anything else.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ript_ray.errors import CheckpointError
from ript_ray.policies.openvla_oft.model import OpenVLA
from ript_ray.storage.reading import read_object

if TYPE_CHECKING:
    import peft

TARGETS = (
    *("qkv", "proj", "fc1", "fc2", "q", "kv"),  # the towers
    "fc3",  # the projector
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
)
"""Last parts of the names of the adapted modules. Source: the authors' adapters."""

TRAINED = "language_model.model.layers."
"""Beginning of the names of the adapted modules that are trained."""

PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "use_dora": False,
    "use_rslora": False,
    "modules_to_save": None,
    "layers_to_transform": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}
"""Fields of `adapter_config.json` that change what an adapter computes, each with its value in plain LoRA."""

ADAPTER = "default"


def new_config(*, rank: int, alpha: float) -> "peft.LoraConfig":
    """Return the configuration of an adapter on the authors' modules; theirs have rank 32 and alpha 16."""
    return _config({"r": rank, "lora_alpha": alpha, "target_modules": [*TARGETS]})


def read_config(path: Path) -> "peft.LoraConfig":
    """Read an `adapter_config.json`.

    Raises:
        CheckpointError: It is missing, damaged, or describes another adapter than plain LoRA.
    """
    given = read_object(path)
    for key, only in PLAIN.items():
        if given.get(key, only) != only:
            raise CheckpointError(f"{path}: {key} is {given[key]!r}; only {only!r} is supported")
    rank, alpha, targets = (given.get(key) for key in ("r", "lora_alpha", "target_modules"))
    is_read = type(rank) is int and rank > 0 and type(alpha) in (int, float)
    if not (is_read and isinstance(targets, list) and all(isinstance(name, str) for name in targets)):
        raise CheckpointError(f"{path}: r and lora_alpha must be numbers and target_modules a list of names")
    return _config({"r": rank, "lora_alpha": alpha, "target_modules": targets})


def config_fields(vla: OpenVLA, base: str) -> dict[str, Any]:
    """Return the content of `adapter_config.json`, only with fields that PEFT 0.11.1 knows as well.

    Args:
        vla: A model with an adapter.
        base: Name or folder of the base model.
    """
    configs: Any = vla.peft_config
    config = configs[ADAPTER]
    return {
        **PLAIN,
        "base_model_name_or_path": base,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "init_lora_weights": config.init_lora_weights,
        "target_modules": sorted(config.target_modules),
        "inference_mode": True,
        "task_type": None,
    }


def _config(fields: dict[str, Any]) -> "peft.LoraConfig":
    import peft  # of the extra `openvla`

    return peft.LoraConfig(**fields, init_lora_weights="gaussian", lora_dropout=0.0)


def add_lora(vla: OpenVLA, config: "peft.LoraConfig", *, is_loaded: bool = False) -> None:
    """Adapt the modules in place; what they compute does not change until the adapter does.

    Args:
        vla: The base model.
        config: See `new_config`.
        is_loaded: Leave the adapter on torch's meta device, as its values will be loaded.
    """
    import peft

    peft.inject_adapter_in_model(config, vla, ADAPTER, low_cpu_mem_usage=is_loaded)
    vla.eval()


def lora_parameters(vla: OpenVLA) -> dict[str, nn.Parameter]:
    """Return the adapter's parameters, by their names in the model."""
    return {name: value for name, value in vla.named_parameters() if ".lora_" in name}


def file_name(name: str) -> str:
    """Return the name that a parameter of the adapter has in `adapter_model.safetensors`."""
    return "base_model.model." + name.replace(f".{ADAPTER}.", ".")
