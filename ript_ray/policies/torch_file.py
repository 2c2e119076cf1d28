"""Files that `torch.save` wrote, from others: read without executing any code in them.

Pickle files can execute code. Two checks prevent it: the callables that a file names are listed without running it and
must be on an allowlist of tensor constructors, and torch then loads it with `weights_only=True`.
"""

import pickletools
import zipfile
import zlib
from collections.abc import Set
from pathlib import Path
from typing import Any

import torch

from ript_ray.errors import CheckpointError, first_few
from ript_ray.storage.reading import require_regular

ALLOWED = frozenset(
    {
        *("collections OrderedDict", "torch._utils _rebuild_tensor_v2"),
        *("torch FloatStorage", "torch BFloat16Storage", "torch LongStorage"),
    }
)
"""The callables that a file may name."""

COMPUTED_CALLS = frozenset({"STACK_GLOBAL", "EXT1", "EXT2", "EXT4"})
"""Pickle operations that call something computed at run time; `torch.save` uses none."""

MAX_PICKLE_BYTES = 16_000_000
"""Largest accepted pickle, without tensors; that of a published policy has about 40 kB."""

MAX_TUPLES = 20_000
"""Most tuples of an accepted pickle; a policy with its optimizers' state has about 6,000.

Tuples within tuples, hundreds of thousands deep, would overflow the stack of the process once they are hashed.
"""


def read_torch_file(path: Path, *, allowed: Set[str] = frozenset()) -> Any:
    """Return the content of a file, its tensors on the CPU.

    Args:
        path: The file.
        allowed: More callables that it may name, as `module name`; torch has to know them as safe.

    Raises:
        CheckpointError: It is missing, corrupt, of another format, or names a callable that is not allowed.
    """
    _refuse_code(path, ALLOWED | allowed)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a corrupt file can fail anywhere in torch
        raise CheckpointError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def _refuse_code(path: Path, allowed: Set[str]) -> None:
    require_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            called = _calls(_read_pickle(archive))
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path} is not a file that torch.save wrote: {error}") from error
    if refused := sorted(called - allowed):
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
