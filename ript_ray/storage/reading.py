"""Reading files that may be damaged, foreign or malicious: an error names the file and what is wrong with it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ript_ray.errors import CheckpointError

MAX_NESTING = 50
"""Lists and objects within each other in a JSON file; ours have ten at most."""


def require_regular(path: Path) -> None:
    """Check that a path is a file or a link to one: reading a pipe or a device may never end.

    Raises:
        CheckpointError: There is nothing at the path, or something else.
    """
    if not path.is_file():
        what = "is no regular file, but a folder, a pipe or a device" if path.exists() else "is missing"
        raise CheckpointError(f"{path} {what}")


def read_bytes(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        CheckpointError: It is missing, no regular file, or cannot be read.
    """
    require_regular(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        CheckpointError: It is missing, no regular file, or not valid; see `parse_json`.
    """
    content = read_bytes(path)
    try:
        return parse_json(content)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; see `read_json` for errors."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} cannot be read: it is JSON, but no object")
    return content


def parse_json(content: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: It is not JSON, an object has a key twice, or it is nested deeper than `MAX_NESTING`.
    """
    try:
        parsed = json.loads(content, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no text: {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    level = _nested([parsed])
    for _ in range(MAX_NESTING):
        level = [inner for value in level for inner in _nested(value.values() if isinstance(value, dict) else value)]
    if level:
        raise ValueError(_TOO_DEEP)
    return parsed


_TOO_DEEP = f"its lists and objects are nested more than {MAX_NESTING} deep"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has {twice!r} twice")
    return found


def _nested(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]
