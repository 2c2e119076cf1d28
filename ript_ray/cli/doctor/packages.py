"""Python's packages: those that ript-ray requires, its extras, and versions that are known to be bad."""

from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from ript_ray.cli.doctor.finding import INSTALL, Finding, by_pip

if TYPE_CHECKING:
    from packaging.requirements import Requirement

NAME = "ript-ray"
HIDDEN_EXTRAS = ("all", "dev", "docs")
"""Of no use by itself, or for work on ript-ray alone."""

KNOWN_PROBLEMS = (
    ("mujoco", ">=3.3.3", "renders the floors of LIBERO-Object darker than policies saw them in training", "==3.3.0"),
    ("ray", "<2.59", "has no token in runs on one machine: its other users can run code as you", "==2.60.*"),
    ("robosuite", "!=1.4.*", "has other controllers than LIBERO's scenes and demonstrations", "==1.4.0"),
)
"""Package, versions, what is bad about them, and which to install instead."""


def packages() -> Iterator[Finding]:
    """Check the version of every required package."""
    try:
        required = _required_by("")
    except metadata.PackageNotFoundError:
        yield Finding(NAME, "not installed", good=False, needed=True, fix=INSTALL)
        return
    except ImportError as error:
        yield Finding("packaging", f"not installed: {error}", good=False, needed=True, fix=INSTALL)
        return
    for requirement in required:
        problem = problem_of(requirement)
        found = problem or metadata.version(requirement.name)
        yield Finding(requirement.name, found, good=not problem, needed=True, fix=INSTALL)


def extras() -> Iterator[Finding]:
    """Check each extra: what a benchmark, a policy or a tool needs beyond the required packages."""
    try:
        names = metadata.metadata(NAME).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:  # as `packages` says
        return
    for extra in (name for name in names if name not in HIDDEN_EXTRAS):
        named = {each.name: problem_of(each) for each in _required_by(extra)}
        found = ", ".join(f"{name} {problem or metadata.version(name)}" for name, problem in named.items())
        yield Finding(f"extra {extra}", found, good=not any(named.values()), fix=by_pip(f"'{NAME}[{extra}]'"))


def problem_of(requirement: "Requirement") -> str:
    """Return what is wrong with the installed version of a required package; empty if nothing is."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return "not installed"
    is_allowed = requirement.specifier.contains(version, prereleases=True)
    return "" if is_allowed else f"{version}, not {requirement.specifier}"


def known_problems(known: Sequence[tuple[str, str, str, str]] = KNOWN_PROBLEMS) -> Iterator[Finding]:
    """Look for versions that work, but not well."""
    from packaging.specifiers import SpecifierSet

    for name, versions, problem, better in known:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if SpecifierSet(versions).contains(version, prereleases=True):
            yield Finding(f"{name} {version}", problem, good=False, fix=by_pip(f"'{name}{better}'"))


def _required_by(extra: str) -> list["Requirement"]:
    """Return what ript-ray requires here, or what an extra of it adds."""
    from packaging.requirements import Requirement

    requirements = map(Requirement, metadata.requires(NAME) or [])
    here = [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": extra})]
    if not extra:
        return here
    always = set(map(str, _required_by("")))
    return [each for each in here if str(each) not in always and each.name != NAME]
