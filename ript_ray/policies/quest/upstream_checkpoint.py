"""The checkpoint files of QueST's and RIPT-VLA's authors: `{"model": state dict}`, written by `torch.save`.

Files of the supervised stages name entries as they are; those that RIPT wrote begin every name with `module.`.

Such a file is a pickle, a program. Two walls stand before it: the names it calls are read without running it and
must all be on a list of four that make tensors, and torch then reads it with `weights_only=True`.
"""

import io
import pickletools
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ript_ray.errors import CheckpointError
from ript_ray.storage.atomic import atomic_write

UpstreamFormat = Literal["sft", "ript"]

PREFIX: dict[UpstreamFormat, str] = {"sft": "", "ript": "module."}
"""What the names of a layout begin with."""

ALLOWED = frozenset(
    {"collections OrderedDict", "torch FloatStorage", "torch LongStorage", "torch._utils _rebuild_tensor_v2"}
)
"""All that a file may call."""

COMPUTED_CALLS = frozenset({"STACK_GLOBAL", "EXT1", "EXT2", "EXT4"})
"""Operations whose callee is not written beside them; `torch.save` uses none."""

MAX_PROGRAM_BYTES = 16_000_000
"""The pickle without its tensors; that of a published policy has some 40 kB."""


def upstream_format(name: str) -> UpstreamFormat:
    """Return the format of that name; raises CheckpointError where there is none."""
    for known in PREFIX:
        if name == known:
            return known
    raise CheckpointError(f"there is no upstream format {name!r}, only {', '.join(PREFIX)}")


@dataclass(frozen=True)
class UpstreamCheckpoint:
    """What such a file holds.

    Attributes:
        layout: Which of the two layouts it has.
        tensors: The entries, named without the layout's prefix. They may share memory.
    """

    layout: UpstreamFormat
    tensors: dict[str, torch.Tensor]


def read_upstream_checkpoint(path: Path) -> UpstreamCheckpoint:
    """Read a file without running anything that is in it.

    Raises:
        CheckpointError: It is missing, not of this kind, damaged, or calls something that is not allowed.
    """
    _refuse_code(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in there
        raise CheckpointError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or list(content) != ["model"] or not isinstance(content["model"], dict):
        raise CheckpointError(f"{path} does not hold a dict with the one key 'model' and a state dict under it")
    entries = content["model"]
    strange = [str(name) for name, value in entries.items() if not (isinstance(name, str) and _is_plain(value))]
    if strange or not entries:
        raise CheckpointError(f"{path} holds {', '.join(strange) or 'no entry'} where named tensors are expected")
    prefixed = [name for name in entries if name.startswith(PREFIX["ript"])]
    if not prefixed:
        return UpstreamCheckpoint("sft", dict(entries))
    if len(prefixed) < len(entries):
        odd = [name for name in entries if name not in prefixed]
        raise CheckpointError(f"{path} mixes two layouts; without 'module.' are only {', '.join(odd)}")
    return UpstreamCheckpoint("ript", {name.removeprefix(PREFIX["ript"]): value for name, value in entries.items()})


def write_upstream_checkpoint(path: Path, arrays: Mapping[str, NDArray[np.generic]], layout: UpstreamFormat) -> None:
    """Write the entries of a state dict to a file that must not exist.

    Raises:
        CheckpointError: The file exists.
        StorageError: The disk does not take it; nothing is left of the attempt.
    """
    if path.exists():
        raise CheckpointError(f"{path} exists already; nothing is overwritten")
    file = io.BytesIO()
    torch.save({"model": {PREFIX[layout] + name: torch.from_numpy(array) for name, array in arrays.items()}}, file)
    atomic_write(path, file.getvalue())


def _refuse_code(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            programs = [entry for entry in archive.infolist() if entry.filename.endswith(".pkl")]
            if len(programs) != 1 or programs[0].file_size > MAX_PROGRAM_BYTES:
                raise CheckpointError(f"{path} is not a file of one state dict: it holds {len(programs)} programs")
            called = _calls(archive.read(programs[0]))
    except FileNotFoundError as error:
        raise CheckpointError(f"there is nothing at {path}") from error
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path} is not a file that torch.save wrote: {error}") from error
    refused = sorted(called - ALLOWED)
    if refused:
        raise CheckpointError(f"{path} is refused, nothing of it was run: it calls {', '.join(refused)}")


def _calls(program: bytes) -> set[str]:
    """Everything that a pickle names to be called, as `module name`."""
    called: set[str] = set()
    for operation, argument, _ in pickletools.genops(program):
        if operation.name in ("GLOBAL", "INST"):
            called.add(str(argument))
        elif operation.name in COMPUTED_CALLS:
            called.add(f"something by {operation.name}")
    return called


def _is_plain(value: object) -> bool:
    return type(value) is torch.Tensor and value.layout is torch.strided
