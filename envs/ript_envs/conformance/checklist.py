"""Conformance checks of contracts: claims, and what was found where one does not hold."""

import contextlib
import copy
import dataclasses
import json
import pickle
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

NOT_CHECKED = "not checked: "
"""How the error of a check begins that could not run because an earlier one failed."""


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        name: The claim that was checked.
        error: Why it does not hold, or None if it holds.
    """

    name: str
    error: str | None


class Violation(Exception):  # noqa: N818 (a finding, not an error of the program)
    """A claim of a contract does not hold; the message says what was found."""


def expect(condition: bool, message: str) -> None:
    """Raise Violation(message) unless `condition` holds."""
    if not condition:
        raise Violation(message)


def expect_array(array: object, dtype: type[np.generic], shape: tuple[int | None, ...], what: str) -> None:
    """Expect an array of this type and shape; None in the shape stands for any length."""
    fits = (
        isinstance(array, np.ndarray)
        and array.dtype == dtype
        and array.ndim == len(shape)
        and all(wanted in (None, found) for found, wanted in zip(array.shape, shape, strict=True))
    )
    lengths = ", ".join("any" if length is None else str(length) for length in shape)
    found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else repr(array)
    expect(fits, f"{what} is {found}, not {dtype.__name__} ({lengths})")


def expect_value_error(call: Callable[[], object], what: str) -> None:
    """Expect a call to raise ValueError."""
    try:
        returned = call()
    except ValueError:
        return
    except Exception as error:
        raise Violation(f"{what} raised {type(error).__name__}: {error}, not ValueError") from error
    raise Violation(f"{what} returned {returned!r} instead of raising ValueError")


class Checklist:
    """Runs checks in order and collects their results; whatever a check raises is its error."""

    def __init__(self) -> None:
        self.results: list[CheckResult] = []

    def run(self, name: str, check: Callable[[], object], *needs: CheckResult) -> CheckResult:
        """Run a check, unless one of those that it `needs` has failed."""
        failed = next((need for need in needs if need.error is not None), None)
        if failed is None:
            error = _error_of(check)
        elif failed.error is not None and failed.error.startswith(NOT_CHECKED):
            error = failed.error
        else:
            error = f'{NOT_CHECKED}it needs "{failed.name}"'
        self.results.append(CheckResult(name, error))
        return self.results[-1]


def _error_of(check: Callable[[], object]) -> str | None:
    try:
        check()
    except Violation as violation:
        return str(violation)
    except Exception as error:  # a plugin may raise anything
        return f"{type(error).__name__}: {error}"
    return None


def expect_tagged_value(value: Any, base: type) -> None:
    """Expect a frozen dataclass derived from `base` whose field `kind` has a default."""
    cls = type(value)
    expect(isinstance(value, base), f"{cls.__name__} is not derived from {base.__name__}")
    expect(dataclasses.is_dataclass(value), f"{cls.__name__} is not a dataclass")
    expect(cls.__dataclass_params__.frozen, f"{cls.__name__} is not frozen: @dataclass(frozen=True)")
    default = next((field.default for field in dataclasses.fields(value) if field.name == "kind"), None)
    has_default = isinstance(default, str) and bool(default)
    expect(
        has_default, f'{cls.__name__} needs a field like kind: Literal["mine"] = field(default="mine", kw_only=True)'
    )
    expect(value.kind == default, f"kind is {value.kind!r}, not {default!r}: it is a tag, not a setting")


def pickled_copy(value: T) -> T:
    """Return what another process would get; nothing is unpickled, a deep copy is made by the same methods."""
    pickle.dumps(value)
    return copy.deepcopy(value)


def expect_equal_pickle(value: object) -> None:
    """Expect a value to equal its pickled copy: actors in other processes get such copies."""
    copied = pickled_copy(value)
    expect(type(copied) is type(value) and copied == value, f"the copy is {copied!r}, not {value!r}")


def expect_equal_json(value: object) -> None:
    """Expect a dataclass to equal what is read strictly from its JSON: runs and checkpoints keep it so."""
    import pydantic

    adapter = pydantic.TypeAdapter(type(value))
    copied = adapter.validate_json(json.dumps(adapter.dump_python(value, mode="json")), strict=True)
    expect(copied == value, f"the copy is {copied!r}, not {value!r}")


def difference(expected: Mapping[str, Any], actual: Mapping[str, Any], *, atol: float = 0.0) -> str | None:
    """Return the first difference between named arrays, or None.

    Args:
        expected: The arrays.
        actual: What should equal them: in names, shapes and types, and in every bit unless `atol` is given.
        atol: Largest absolute difference of floating-point entries.
    """
    if set(expected) != set(actual):
        return f"has {', '.join(sorted(actual)) or 'nothing'}, not {', '.join(sorted(expected)) or 'nothing'}"
    for name, wanted in expected.items():
        found = actual[name]
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            return f"{name} is {found.dtype} {found.shape}, not {wanted.dtype} {wanted.shape}"
        if found.tobytes() == wanted.tobytes():
            continue
        if wanted.dtype.kind not in "iufb":
            return f"{name} differs"
        if not (atol and wanted.dtype.kind == "f" and np.allclose(found, wanted, rtol=1e-5, atol=atol)):
            distance = np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max()
            return f"{name} differs by up to {distance:.3g}"
    return None


@contextlib.contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed Python's and NumPy's global generators, and restore them afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
