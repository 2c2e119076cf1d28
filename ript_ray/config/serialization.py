"""Strict serialization of frozen dataclasses to JSON, readable across versions of this package.

Every file contains the number of its schema. A field that was added after a file was written takes the value that
reproduces the earlier behavior: `field(default=NEW, metadata={"before": OLD})`. Without it, older files are refused, so
whoever adds a field must state what its absence means.
"""

import difflib
import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import pydantic

from ript_ray.config.experiment import Experiment
from ript_ray.config.kinds import Kinds
from ript_ray.errors import CheckpointError, ConfigError, first_few
from ript_ray.storage.reading import read_object

SCHEMA = 2
"""Number of the schema that this version writes. Files of schema 1 have neither a number nor kinds."""

BEFORE = "before"
"""Key in a field's metadata: the value of the field for files that are older than the field."""

T = TypeVar("T")
Content = dict[str, Any]
Upgrades = Mapping[int, Callable[[Content], Content]]
"""By schema: converts the content of a file to the next schema."""


def to_json(value: Any) -> str:
    """Serialize a dataclass with all fields, defaults included, and the schema's number."""
    content = pydantic.TypeAdapter(type(value)).dump_python(value, mode="json")
    return json.dumps({"schema": SCHEMA, **content}, indent=2)


def from_json(path: Path, cls: type[T], what: str, upgrades: Upgrades | None = None) -> T:
    """Read a dataclass.

    Args:
        path: The file.
        cls: The dataclass.
        what: What the file describes, for the message.
        upgrades: Conversions of earlier schemas.

    Raises:
        CheckpointError: The file is missing, not JSON or of a newer schema, a field is missing or unknown, a kind is
            unknown, or a value is out of range or has another type.
    """
    content = read_object(path)
    try:
        content = _upgraded(content, upgrades or {})
        problems = _complete(content, cls, "")
        if problems:
            raise ConfigError("; ".join(first_few(problems)))
        return pydantic.TypeAdapter(cls).validate_json(json.dumps(content), strict=True)
    except pydantic.ValidationError as error:
        raise CheckpointError(f"{path} does not describe {what}: {'; '.join(first_few(problems_in(error)))}") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:  # upgrades meet anything
        raise CheckpointError(f"{path} does not describe {what}: {error}") from error


def problems_in(error: pydantic.ValidationError, prefix: str = "") -> list[str]:
    """List what is wrong in plain words: field by field, sections within sections."""
    found = []
    for each in error.errors(include_url=False):
        name = prefix + ".".join(map(str, each["loc"]))
        cause = each.get("ctx", {}).get("error")
        if isinstance(cause, pydantic.ValidationError):
            found += problems_in(cause, f"{name}.")
        elif isinstance(cause, ConfigError):  # it names the option
            found.append(str(cause))
        else:
            found.append(f"{name}: {each['msg']}, not {reprlib.repr(each['input'])}")
    return found


def read_experiment(path: Path) -> Experiment:
    """Read an experiment; see `from_json` for errors."""
    return from_json(path, Experiment, "an experiment", {1: _name_kinds})


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names: {"ppo": {"clip_low": 0.2}} becomes {"ppo.clip_low": 0.2}."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _name_kinds(content: Content) -> Content:
    """Schema 1 had a single benchmark and a single policy."""
    kinds = {"benchmark": "metaworld", "policy": "quest", "sft": "quest"}
    tagged = {
        name: {"kind": kind, **content[name]} for name, kind in kinds.items() if isinstance(content.get(name), dict)
    }
    return {**content, **tagged}


def _upgraded(content: Content, upgrades: Upgrades) -> Content:
    schema = content.pop("schema", 1)
    if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
        raise ConfigError(f"it has schema {schema!r}, but this version of ript-ray reads schemas 1 to {SCHEMA}")
    for step in range(schema, SCHEMA):
        content = upgrades[step](content) if step in upgrades else content
    return content


def _complete(content: Content, cls: Any, prefix: str) -> list[str]:
    """Fill in fields that are newer than the file, in place; returns the missing and unknown fields."""
    known = {field.name: field for field in fields(cls)}
    hints = get_type_hints(cls, include_extras=True)
    problems = []
    for name in content.keys() - known.keys():
        near = difflib.get_close_matches(name, known, n=1)
        problems.append(f"unknown {prefix}{name}" + (f" (did you mean {near[0]}?)" if near else ""))
    for name, field in known.items():
        if name not in content and not _fill(content, field):
            problems.append(f"missing {prefix}{name}")
        nested = _dataclass_of(hints[name], content.get(name))
        if nested is not None:
            problems += _complete(content[name], nested, f"{prefix}{name}.")
    return sorted(problems)


def _fill(content: Content, field: "Field[Any]") -> bool:
    if BEFORE in field.metadata:
        content[field.name] = field.metadata[BEFORE]
    return BEFORE in field.metadata


def _dataclass_of(hint: Any, value: Any) -> Any:
    """The dataclass that a JSON object represents, or None if the value is something else."""
    if not isinstance(value, dict):
        return None
    for candidate in (hint, *get_args(hint)):
        if isinstance(candidate, Kinds):
            return candidate.find(value.get("kind"))
        if isinstance(candidate, type) and is_dataclass(candidate):
            return candidate
    return None
