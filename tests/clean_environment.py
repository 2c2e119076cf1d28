"""An environment that holds what `pip install ript-ray[EXTRAS]` brings, without a download: links to what is here."""

import subprocess
import sys
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def make_environment(folder: Path, wheel: Path, *, extras: Iterable[str] = ()) -> Path:
    """Make a virtual environment with a wheel of ript-ray, and nothing that it does not ask for; return its commands.

    Args:
        folder: Where; it must not exist.
        wheel: The wheel.
        extras: The extras that are installed with it.
    """
    venv.create(folder, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, "install", "-q", "--no-deps", str(wheel)], check=True, capture_output=True)
    (installed,) = folder.glob("lib/*/site-packages")
    (own,) = metadata.distributions(name="ript-ray", path=[str(installed)])
    linked = folder / "linked"
    linked.mkdir()
    for distribution in _needed(own, frozenset(extras)):
        for name in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (linked / name).exists():
                (linked / name).symlink_to(str(distribution.locate_file(name)))
    (installed / "linked.pth").write_text(f"{linked}\n")
    return folder / "bin"


def _needed(own: metadata.Distribution, extras: frozenset[str]) -> list[metadata.Distribution]:
    """Return all that a distribution with these extras requires, directly or not, as pip would find it."""
    found: dict[tuple[str, str], metadata.Distribution] = {}
    waiting = [(own, extra) for extra in {"", *extras}]
    while waiting:
        distribution, extra = waiting.pop()
        for requirement in map(Requirement, distribution.requires or ()):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            for of_it in {"", *requirement.extras}:
                key = (canonicalize_name(requirement.name), of_it)
                if key not in found:
                    found[key] = metadata.distribution(requirement.name)
                    waiting.append((found[key], of_it))
    return list(found.values())
