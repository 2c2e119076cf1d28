"""The known kinds of policies and benchmarks: the tags by which configuration files name a class.

A kind is known because it is ours, because an installed package offers it as an entry point, or because the command
line or the program named it. It is never known because a file names it: reading a file imports nothing.
"""

import difflib
import importlib
import importlib.metadata
import json
from typing import Any, Generic, TypeVar

import pydantic
from pydantic_core import CoreSchema, core_schema

from ript_ray.errors import ConfigError

T = TypeVar("T")


class Kinds(Generic[T]):
    """The classes that a section of the configuration may be of, by their field `kind`.

    As the annotation of a field (`Annotated[PolicyConfig, POLICIES]`) it makes pydantic read and write the section as a
    tagged union.
    """

    def __init__(self, section: str, base: type[Any], *builtin: type[T], entry_points: str):
        """Know the classes of this package.

        Args:
            section: Name of the section, for messages.
            base: What every class must be derived from.
            builtin: The package's own.
            entry_points: Name of the entry-point group in which installed packages offer theirs, under their kind.
        """
        self._section = section
        self._base = base
        self._entry_points = entry_points
        self._classes = {self._kind_of(cls): cls for cls in builtin}

    def add(self, cls: type[T]) -> None:
        """Make a class known in this process; adding it again does no harm.

        Raises:
            ConfigError: It is not derived from the section's base class, has no kind, or another class has that kind.
        """
        known = self._classes.setdefault(self._kind_of(cls), cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(
                f"{self._section}.kind {self._kind_of(cls)!r} is taken by {known.__module__}:{known.__qualname__}; "
                f"{cls.__module__}:{cls.__qualname__} needs another kind"
            )
        self._classes[self._kind_of(cls)] = cls

    def accepts(self, cls: object) -> bool:
        """Return whether an object is a class that `add` could take."""
        return isinstance(cls, type) and issubclass(cls, self._base)

    def names(self) -> list[str]:
        """Return every known kind; nothing is imported."""
        return sorted({*self._classes, *(entry.name for entry in self._offered())})

    def find(self, kind: object) -> type[T]:
        """Return the class of a kind.

        Raises:
            ConfigError: It is unknown, or the package that offers it cannot be imported.
        """
        if not isinstance(kind, str):
            raise ConfigError(f"{self._section}.kind must be one of {', '.join(self.names())}, not {kind!r}")
        for entry in self._offered():
            if entry.name == kind and kind not in self._classes:
                try:
                    self.add(entry.load())
                except (ImportError, AttributeError) as error:
                    raise ConfigError(
                        f"{self._section}.kind {kind}: {entry.value} cannot be loaded: {error}"
                    ) from error
        if kind not in self._classes:
            near = difflib.get_close_matches(kind, self.names(), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(
                f"{self._section}.kind {kind!r} is not known here, only {', '.join(self.names())}{hint}; "
                "name a class of your own with --plugin MODULE:NAME"
            )
        return self._classes[kind]

    def _kind_of(self, cls: type[T]) -> str:
        if not self.accepts(cls):
            raise ConfigError(f"{cls!r} is not a {self._section}: it is not derived from {self._base.__name__}")
        kind = getattr(cls, "kind", None)
        if not isinstance(kind, str) or not kind:
            raise ConfigError(
                f"{cls.__module__}:{cls.__qualname__} needs a field `kind` with a default, such as 'mine'"
            )
        return kind

    def _offered(self) -> importlib.metadata.EntryPoints:
        return importlib.metadata.entry_points(group=self._entry_points)

    def __get_pydantic_core_schema__(self, source: Any, handler: pydantic.GetCoreSchemaHandler) -> CoreSchema:
        """Read a section by its tag, write it as what it is."""

        def read(value: Any) -> Any:
            if isinstance(value, self._base):
                return value
            if not isinstance(value, dict):
                raise ConfigError(f"{self._section} must be an object with a kind, not {value!r}")
            return pydantic.TypeAdapter(self.find(value.get("kind"))).validate_json(json.dumps(value), strict=True)

        def write(value: Any) -> Any:
            return pydantic.TypeAdapter(type(value)).dump_python(value, mode="json")

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(write)
        )
