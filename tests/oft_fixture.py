"""The files of OpenVLA-OFT's parity fixture: a tiny checkpoint, and what the authors' code made of it."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent / "fixtures" / "openvla_oft"
CHECKPOINT = FOLDER / "checkpoint"

Change = Callable[[dict[str, Any]], object]


@functools.cache
def arrays(name: str) -> dict[str, NDArray[Any]]:
    with np.load(FOLDER / name) as file:
        return dict(file)


def changed(folder: Path, name: str, change: Change) -> Path:
    """Write a file of the checkpoint, changed, into a folder, and return the folder."""
    content = json.loads((CHECKPOINT / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    return folder
