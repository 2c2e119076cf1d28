"""Configuration to JSON and back, strictly."""

import difflib
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
            out of range or of another type.
    """
    try:
        text = path.read_text()
        experiment = _EXPERIMENT.validate_json(text, strict=True)
        problems = _differing_keys(json.loads(text), experiment, "")
    except (OSError, UnicodeDecodeError, pydantic.ValidationError) as error:
        raise CheckpointError(f"{path} does not describe an experiment: {error}") from error
    if problems:
        raise CheckpointError(f"{path} does not describe an experiment: {'; '.join(problems)}")
    return experiment


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
