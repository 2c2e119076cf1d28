"""Registry of the kinds of policies and benchmarks: the tags by which configuration files name a class.

A kind is known if it is built in, if an installed package provides it as an entry point, or if the command line or
the program registered it. A file cannot make a kind known: reading one never imports a module that it names.
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
    """The classes that one section of the configuration may have, by their field `kind`.

    As the annotation of a field (`Annotated[PolicyConfig, POLICIES]`), it makes pydantic read and write the section as
    a tagged union.
    """

    def __init__(self, section: str, base: type[Any], *builtin: type[T], entry_points: str):
        """Register the built-in classes.

        Args:
            section: Name of the section, for messages.
            base: Base class of all classes of the section.
            builtin: The package's own classes.
            entry_points: Entry-point group of the classes that installed packages provide, named by their kinds.
        """
        self._section = section
        self._base = base
        self._entry_points = entry_points
        self._classes = {self._kind_of(cls): cls for cls in builtin}
        self._builtin = builtin

    def add(self, cls: type[T]) -> None:
        """Register a class in this process; doing so twice is harmless.

        Raises:
            ConfigError: The class is not derived from the base class or has no kind, or its kind is taken.
        """
        known = self._classes.setdefault(self._kind_of(cls), cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(
                f"{self._section}.kind {self._kind_of(cls)!r} is taken by {known.__module__}:{known.__qualname__}; "
                f"{cls.__module__}:{cls.__qualname__} needs another kind"
            )
        self._classes[self._kind_of(cls)] = cls

    def accepts(self, cls: object) -> bool:
        """Return whether an object is a class of this section: derived from its base class."""
        return isinstance(cls, type) and issubclass(cls, self._base)

    def names(self) -> list[str]:
        """Return every known kind, without importing any."""
        return sorted({*self._classes, *(entry.name for entry in self._provided())})

    def find(self, kind: object) -> type[T]:
        """Return the class of a kind.

        Raises:
            ConfigError: It is unknown, or the package that provides it cannot be imported.
        """
        if not isinstance(kind, str):
            raise ConfigError(f"{self._section}.kind must be one of {', '.join(self.names())}, not {kind!r}")
        for entry in self._provided():
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
                f"{self._section}.kind {kind!r} is unknown; known are {', '.join(self.names())}{hint}; "
                "register a class of your own with --plugin MODULE:NAME"
            )
        return self._classes[kind]

    def needs_plugin(self, cls: type[T]) -> bool:
        """Return whether another process knows a class by `--plugin` alone: it is neither built in nor provided."""
        return cls not in self._builtin and self._kind_of(cls) not in {entry.name for entry in self._provided()}

    def _kind_of(self, cls: type[T]) -> str:
        if not self.accepts(cls):
            raise ConfigError(f"{cls!r} is not a {self._section}: it is not derived from {self._base.__name__}")
        kind = getattr(cls, "kind", None)
        if not isinstance(kind, str) or not kind:
            raise ConfigError(
                f"{cls.__module__}:{cls.__qualname__} needs a field `kind` with a default, such as 'mine'"
            )
        return kind

    def _provided(self) -> importlib.metadata.EntryPoints:
        return importlib.metadata.entry_points(group=self._entry_points)

    def __get_pydantic_core_schema__(self, source: Any, handler: pydantic.GetCoreSchemaHandler) -> CoreSchema:
        """Validate a section as the class that its kind names; serialize it as its own class."""

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
