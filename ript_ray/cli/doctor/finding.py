"""What a check of the doctor found."""

import os
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import ript_ray

GIB = 2**30
CHECKOUT = Path(ript_ray.__file__).parents[1]
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))


def by_pip(arguments: str, site_packages: Path = SITE_PACKAGES) -> str:
    """Return the line that installs packages; where this user cannot, as in an image, it says who can."""
    line = f"pip install {arguments}"
    if os.access(site_packages, os.W_OK):
        return line
    return f"{line}, by a user who can write to {site_packages}; an image is built again (clusters/README.md)"


INSTALL = "make install" if (CHECKOUT / "Makefile").is_file() else by_pip("--upgrade ript-ray")


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        thing: What was checked.
        found: Version, size or state found.
        good: Whether the check passed.
        needed: Whether a run would fail where it did not pass.
        fix: Command that fixes it, or a hint if there is none.
    """

    thing: str
    found: str
    good: bool = field(default=True, kw_only=True)
    needed: bool = field(default=False, kw_only=True)
    fix: str = field(default="", kw_only=True)

    @property
    def mark(self) -> str:
        """The finding in a word: error if a run would fail, warning if a part of what ript-ray can do would."""
        return "ok" if self.good else "error" if self.needed else "warning"
