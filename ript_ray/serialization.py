"""Configuration to JSON and back, strictly."""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pydantic

from ript_ray.config import Experiment
from ript_ray.errors import CheckpointError

_EXPERIMENT = pydantic.TypeAdapter(Experiment)


def experiment_to_json(experiment: Experiment) -> str:
    """Every field, defaults included."""
    return _EXPERIMENT.dump_json(experiment, indent=2).decode()


def experiment_from_json(path: Path) -> Experiment:
    """Read an experiment.

    Raises:
        CheckpointError: The file is missing or no JSON, lacks a field, has an unknown one, or a value is
            out of range.
    """
    try:
        text = path.read_text()
        experiment = _EXPERIMENT.validate_json(text)
        unknown = _unknown_keys(json.loads(text), experiment, "")
    except (OSError, UnicodeDecodeError, pydantic.ValidationError) as error:
        raise CheckpointError(f"{path} does not describe an experiment: {error}") from error
    if unknown:
        raise CheckpointError(f"{path} has settings this version does not know: {', '.join(unknown)}")
    return experiment


def _unknown_keys(given: dict[str, Any], known: Any, prefix: str) -> list[str]:
    names = {field.name for field in fields(known)}
    unknown = [prefix + name for name in given if name not in names]
    for name in names & given.keys():
        value = getattr(known, name)
        if is_dataclass(value):
            unknown += _unknown_keys(given[name], value, f"{prefix}{name}.")
    return unknown
