"""Checkpoint files of QueST's and RIPT-VLA's authors: `{"model": state dict}`, written by `torch.save`.

Files of the supervised stages use plain names; in RIPT's files every name has the prefix `module.`. The files that
QueST's training saves every few epochs have ten more keys, which are ignored.

Pickle files can execute code. Two checks prevent it: the callables that a file names are listed without running it and
must be on an allowlist of four tensor constructors, and torch then loads it with `weights_only=True`. The optimizers'
state in the ten other keys also names classes of OmegaConf: a stand-in that does nothing takes their place.
"""

import io
import logging
import pickletools
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ript_ray.errors import CheckpointError, first_few
from ript_ray.storage.atomic import atomic_write, require_absent
from ript_ray.storage.reading import require_regular

logger = logging.getLogger(__name__)

UpstreamFormat = Literal["sft", "ript"]

PREFIX: dict[UpstreamFormat, str] = {"sft": "", "ript": "module."}
"""Prefix of the names in each format."""

ALLOWED = frozenset(
    {"collections OrderedDict", "torch FloatStorage", "torch LongStorage", "torch._utils _rebuild_tensor_v2"}
)
"""The callables that a file may name."""

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

COMPUTED_CALLS = frozenset({"STACK_GLOBAL", "EXT1", "EXT2", "EXT4"})
"""Pickle operations that call something computed at run time; `torch.save` uses none."""

MAX_PICKLE_BYTES = 16_000_000
"""Largest accepted pickle, without tensors; that of a published policy has about 40 kB."""

MAX_TUPLES = 20_000
"""Most tuples of an accepted pickle; a policy with its optimizers' state has about 6,000.

Tuples within tuples, hundreds of thousands deep, would overflow the stack of the process once they are hashed.
"""


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
    _refuse_code(path)
    try:
        with torch.serialization.safe_globals([(_StandIn, name) for name in REPLACED.values()]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a corrupt file can fail anywhere in torch
        raise CheckpointError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
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


def _refuse_code(path: Path) -> None:
    require_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            called = _calls(_read_pickle(archive))
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path} is not a file that torch.save wrote: {error}") from error
    if refused := sorted(called - ALLOWED - REPLACED.keys()):
        listed = ", ".join(first_few(refused))
        raise CheckpointError(f"{path} was refused without executing anything: it calls {listed}")


def _read_pickle(archive: zipfile.ZipFile) -> bytes:
    """Return the pickle of an archive, the same that torch will find.

    Python looks for an archive at the end of a file, torch at its beginning, and for names in any case.

    Raises:
        ValueError: The archive does not begin where the file does, or has not one pickle of a sensible size.
    """
    entries = archive.infolist()
    if not entries or min(entry.header_offset for entry in entries) > 0:
        raise ValueError("it does not begin with its archive")
    pickles = [entry for entry in entries if entry.filename.lower().endswith(".pkl")]
    if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
        raise ValueError(f"it does not have one state dict, but {len(pickles)} pickles")
    if pickles[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is packed by a method that torch does not read")
    return archive.read(pickles[0])


def _calls(pickle: bytes) -> set[str]:
    """Return every callable that a pickle names, as `module name`.

    Raises:
        ValueError: It is damaged, or has more than `MAX_TUPLES` tuples.
    """
    called: set[str] = set()
    num_tuples = 0
    for operation, argument, _ in pickletools.genops(pickle):
        num_tuples += "TUPLE" in operation.name
        if num_tuples > MAX_TUPLES:
            raise ValueError(f"it has more than {MAX_TUPLES:,} tuples")
        if operation.name in ("GLOBAL", "INST"):
            called.add(str(argument))
        elif operation.name in COMPUTED_CALLS:
            called.add(f"a computed callable ({operation.name})")
    return called


def _name_of(key: object) -> str:
    return key if isinstance(key, str) else f"a {type(key).__name__}"  # others may be too deep to be shown


def _is_plain(value: object) -> bool:
    return type(value) is torch.Tensor and value.layout is torch.strided
