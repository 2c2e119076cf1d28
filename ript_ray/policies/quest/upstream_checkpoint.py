"""Checkpoint files of QueST's and RIPT-VLA's authors: `{"model": state dict}`, written by `torch.save`.

Files of the supervised stages use plain names; in RIPT's files every name has the prefix `module.`. The files that
QueST's training saves every few epochs have ten more keys, which are ignored.

The optimizers' state in the ten other keys also names classes of OmegaConf: a stand-in that does nothing takes their
place.
"""

import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ript_ray.errors import CheckpointError, first_few
from ript_ray.policies.torch_file import read_torch_file
from ript_ray.storage.atomic import atomic_write, require_absent

logger = logging.getLogger(__name__)

UpstreamFormat = Literal["sft", "ript"]

PREFIX: dict[UpstreamFormat, str] = {"sft": "", "ript": "module."}
"""Prefix of the names in each format."""

IGNORED_KEYS = frozenset(
    {
        *("optimizers", "schedulers", "scaler", "epoch", "stage", "steps"),
        *("wandb_id", "experiment_dir", "experiment_name", "config"),
    }
)
"""The keys besides `model` in the files that QueST's training saves every few epochs. Source: QueST's train.py."""

REPLACED = {
    "__builtin__ dict": "builtins.dict",
    "__builtin__ list": "builtins.list",
    "__builtin__ long": "builtins.int",
    "collections defaultdict": "collections.defaultdict",
    "omegaconf.base ContainerMetadata": "omegaconf.base.ContainerMetadata",
    "omegaconf.base Metadata": "omegaconf.base.Metadata",
    "omegaconf.listconfig ListConfig": "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes AnyNode": "omegaconf.nodes.AnyNode",
    "typing Any": "typing.Any",
}
"""What a list of OmegaConf names, and torch's names for it. With QueST's torch (2.2), an optimizer's betas are one."""


def upstream_format(name: str) -> UpstreamFormat:
    """Return the format of that name; raises CheckpointError if there is none."""
    for known in PREFIX:
        if name == known:
            return known
    raise CheckpointError(f"there is no upstream format {name!r}, only {', '.join(PREFIX)}")


@dataclass(frozen=True)
class UpstreamCheckpoint:
    """Content of an upstream checkpoint file.

    Attributes:
        layout: Its format.
        tensors: The entries, named without the format's prefix. They may share memory.
    """

    layout: UpstreamFormat
    tensors: dict[str, torch.Tensor]


def read_upstream_checkpoint(path: Path) -> UpstreamCheckpoint:
    """Read a file without executing any code in it.

    Raises:
        CheckpointError: It is missing, corrupt, of another format, or names a callable that is not allowed.
    """
    with torch.serialization.safe_globals([(_StandIn, name) for name in REPLACED.values()]):
        content = read_torch_file(path, allowed=REPLACED.keys())
    entries = _model_in(content, path)
    strange = [_name_of(name) for name, value in entries.items() if not (isinstance(name, str) and _is_plain(value))]
    if strange or not entries:
        raise CheckpointError(
            f"{path} contains {', '.join(first_few(strange)) or 'no entry'} where named tensors are expected"
        )
    prefixed = [name for name in entries if name.startswith(PREFIX["ript"])]
    if not prefixed:
        return UpstreamCheckpoint("sft", dict(entries))
    if len(prefixed) < len(entries):
        odd = [name for name in entries if name not in prefixed]
        raise CheckpointError(
            f"{path} mixes two formats: these entries lack the prefix 'module.': {', '.join(first_few(odd))}"
        )
    return UpstreamCheckpoint("ript", {name.removeprefix(PREFIX["ript"]): value for name, value in entries.items()})


def write_upstream_checkpoint(path: Path, arrays: Mapping[str, NDArray[np.generic]], layout: UpstreamFormat) -> None:
    """Write the entries of a state dict to a file, which must not exist.

    Raises:
        StorageError: The file exists or cannot be written; nothing is left behind.
    """
    require_absent(path)
    file = io.BytesIO()
    torch.save({"model": {PREFIX[layout] + name: torch.from_numpy(array) for name, array in arrays.items()}}, file)
    atomic_write(path, file.getvalue())


class _StandIn:
    """Takes the place of what `REPLACED` names: accepts all that a pickle does with it, and does nothing."""

    def __init__(self, *_: object):
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _model_in(content: object, path: Path) -> dict[Any, Any]:
    """Return the state dict in a file's content.

    Raises:
        CheckpointError: There is none, or there are keys that the authors' files do not have.
    """
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(f"{path} is not a dict with the key 'model' and a state dict as its value")
    others = content.keys() - {"model"}
    if unknown := sorted(map(_name_of, others - IGNORED_KEYS)):
        listed = ", ".join(first_few(unknown))
        raise CheckpointError(f"{path} has keys that the authors' files do not have: {listed}")
    if others:
        logger.info("ignoring all of %s but its model: %s", path, ", ".join(sorted(others)))
    if content.get("stage") == 0:
        logger.warning("%s was saved by QueST's stage 0, the autoencoder: its prior is not trained", path)
    model: dict[Any, Any] = content["model"]
    return model


def _name_of(key: object) -> str:
    return key if isinstance(key, str) else f"a {type(key).__name__}"  # others may be too deep to be shown


def _is_plain(value: object) -> bool:
    return type(value) is torch.Tensor and value.layout is torch.strided
