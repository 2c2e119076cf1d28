"""A cluster as a TOML file, so that an experiment needs one option to run there: `--cluster-file PATH`."""

import difflib
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pydantic

from ript_ray.checks import require
from ript_ray.errors import ConfigError
from ript_ray.runtime.cluster import Cluster


def read_cluster(path: Path) -> Cluster:
    """Read a cluster from a file with lines such as `cpus-per-actor = 2`: fields as `--help` spells them.

    What the file does not name has its default.

    Raises:
        ConfigError: It cannot be read, has a name that is no field, or a value of another type or out of range.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # a TOMLDecodeError is a ValueError, and so is what is no text
        raise ConfigError(f"cluster file {path} cannot be read as TOML: {error}") from error
    names = {field.name.replace("_", "-"): field.name for field in fields(Cluster)}
    try:
        for name, value in content.items():
            _require_field(name, value, names)
        return Cluster(**{names[name]: value for name, value in content.items()})
    except ConfigError as error:
        raise ConfigError(f"cluster file {path}: {error}") from None


def _require_field(name: str, value: Any, names: dict[str, str]) -> None:
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    require(name in names, f"unknown {name} ({hint})")
    try:
        pydantic.TypeAdapter(get_type_hints(Cluster)[names[name]]).validate_python(value, strict=True)
    except pydantic.ValidationError as error:
        raise ConfigError(f"cluster.{name}: {error.errors()[0]['msg']}, not {value!r}") from None
