"""Frozen dataclasses to JSON and back, strictly."""

import difflib
import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from ript_ray.config.experiment import Experiment
from ript_ray.errors import CheckpointError

T = TypeVar("T")


def to_json(value: Any) -> str:
    """Every field of a dataclass, defaults included."""
    return pydantic.TypeAdapter(type(value)).dump_json(value, indent=2).decode()


def from_json(path: Path, kind: type[T], what: str) -> T:
    """Read a dataclass.

    Args:
        path: The file.
        kind: The dataclass.
        what: What it describes, for the message.

    Raises:
        CheckpointError: The file is missing or no JSON, lacks a field, has an unknown one, or a value is
            out of range or of another type.
    """
    try:
        text = path.read_text()
        value = pydantic.TypeAdapter(kind).validate_json(text, strict=True)
        problems = _differing_keys(json.loads(text), value, "")
    except (OSError, UnicodeDecodeError, pydantic.ValidationError) as error:
        raise CheckpointError(f"{path} does not describe {what}: {error}") from error
    if problems:
        raise CheckpointError(f"{path} does not describe {what}: {'; '.join(problems)}")
    return value


def experiment_to_json(experiment: Experiment) -> str:
    """Every field, defaults included."""
    return to_json(experiment)


def experiment_from_json(path: Path) -> Experiment:
    """Read an experiment; see `from_json` for errors."""
    return from_json(path, Experiment, "an experiment")


def _differing_keys(given: dict[str, Any], known: Any, prefix: str) -> list[str]:
    names = {field.name for field in fields(known)}
    problems = [f"missing {prefix}{name}" for name in sorted(names - given.keys())]
    for name, content in given.items():
        value = getattr(known, name, None)
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            problems.append(f"unknown {prefix}{name}" + (f" (did you mean {near[0]}?)" if near else ""))
        elif is_dataclass(value):
            problems += _differing_keys(content, value, f"{prefix}{name}.")
    return problems
