"""`ript-ray doctor`: checks of the installation and the machine, with suggested fixes.

Imports no package at module level that could be the one that is missing.
"""

import ctypes.util
import importlib
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ript_envs.gl import RenderingError, chosen_backend, require_gl, used_backend
from ript_ray.runtime.host import memory_bytes, num_cpus

GIB = 2**30
SHARED_MEMORY = Path("/dev/shm")
INSTALL = "make install"


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        thing: What was checked.
        found: Version, size or count found.
        good: Whether the check passed.
        needed: Whether it is required rather than optional.
        fix: Command that fixes it, or a hint if there is none.
    """

    thing: str
    found: str
    good: bool
    needed: bool
    fix: str

    @property
    def mark(self) -> str:
        """The finding in a word."""
        return "ok" if self.good else "missing" if self.needed else "optional"


@dataclass(frozen=True)
class Doctor:
    """Check the installation and suggest fixes."""

    def run(self) -> int:
        """Print all findings; return 1 if a required one fails, else 0."""
        findings = [*hardware(), *rendering(), *libero(), *packages()]
        rows = [
            (finding.mark, finding.thing, finding.found, "" if finding.good else finding.fix) for finding in findings
        ]
        try:
            _print_table(rows)
        except ImportError:  # rich is what is missing
            print("\n".join("  ".join(row) for row in rows))
        missing = [finding.thing for finding in findings if finding.needed and not finding.good]
        print(f"missing: {', '.join(missing)}" if missing else "everything that the quickstart needs is here")
        return 1 if missing else 0


def hardware() -> Iterator[Finding]:
    """Check Python, cores, memory, disk and GPU."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python", version, sys.version_info >= (3, 11), True, "apt-get install python3.11 python3.11-venv")
    yield Finding("cores", str(num_cpus()), num_cpus() >= 2, False, "one core also works, at half the speed")
    memory = memory_bytes() / GIB
    yield Finding("memory", f"{memory:.1f} GiB", memory >= 5.5, True, "the quickstart needs a machine with 6 GiB")
    if SHARED_MEMORY.exists():
        shared = shutil.disk_usage(SHARED_MEMORY)
        yield Finding(
            "shared memory",
            f"{shared.free / GIB:.1f} of {shared.total / GIB:.1f} GiB free",
            shared.free >= GIB,
            False,
            "mount -o remount,size=4G /dev/shm (docker run --shm-size=4g); otherwise Ray stores objects on disk",
        )
    disk = shutil.disk_usage(Path.cwd()).free / GIB
    yield Finding("disk", f"{disk:.1f} GiB free here", disk >= 2, True, "free 2 GiB for logs and checkpoints")
    yield _gpu()


def rendering() -> Iterator[Finding]:
    """Check what MuJoCo renders with: the GL libraries, and which of them MUJOCO_GL asks for."""
    try:
        require_gl()
        wrong = ""
    except RenderingError as error:
        wrong = str(error)
    yield Finding("MUJOCO_GL", chosen_backend() or f"not set: {used_backend()}", not wrong, True, wrong)
    for library, package in (("EGL", "libegl1"), ("OSMesa", "libosmesa6"), ("GL", "libgl1")):
        found = ctypes.util.find_library(library)
        fix = f"apt-get install {package}"
        yield Finding(f"lib{library} (rendering)", found or "not found", bool(found), False, fix)


def libero() -> Iterator[Finding]:
    """Check which distribution of LIBERO is installed, and that its assets are."""
    try:
        from ript_envs.libero.installation import assets_folder
        from ript_envs.libero.suites import DISTRIBUTIONS, INSTALL, LiberoMissingError
    except ImportError:  # of a package that is reported below
        return
    installed = [f"{each.name} {each.version}" for each in metadata.distributions() if each.name in DISTRIBUTIONS]
    problem = f"uninstall them, they overwrite each other; then {INSTALL}" if len(installed) > 1 else ""
    try:
        assets_folder()
    except LiberoMissingError as error:
        problem = problem or str(error)
    yield Finding("LIBERO", ", ".join(installed) or "not installed", not problem, False, problem)


def packages() -> Iterator[Finding]:
    """Check the version of every required package."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield Finding("packaging", "not installed", False, True, INSTALL)
        return
    try:
        requirements = metadata.requires("ript-ray") or []
    except metadata.PackageNotFoundError:
        yield Finding("ript-ray", "not installed", False, True, INSTALL)
        return
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding(requirement.name, "not installed", False, True, INSTALL)
            continue
        good = requirement.specifier.contains(version)
        found = version if good else f"{version}, not {requirement.specifier}"
        yield Finding(requirement.name, found, good, True, INSTALL)


def _print_table(rows: Iterable[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    colors = {"ok": "green", "missing": "red", "optional": "yellow"}
    table = Table(title="ript-ray doctor", title_justify="left")
    for column in ("", "thing", "found", "to fix it"):
        table.add_column(column)
    for mark, *cells in rows:
        table.add_row(f"[{colors[mark]}]{mark}[/]", *cells)
    Console().print(table)


def _gpu() -> Finding:
    try:
        count = importlib.import_module("torch").cuda.device_count()
    except (ImportError, OSError) as error:
        return Finding("GPU", f"torch cannot be imported: {error}", False, True, INSTALL)
    return Finding("GPU", str(count), count > 0, False, "not needed by the quickstart")
