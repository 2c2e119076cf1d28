"""What the tests of clusters/ read: the shipped settings, YAML and cluster files."""

import re
from typing import Any

import yaml

from tests.commands import ROOT

CLUSTERS = ROOT / "clusters"


def settings() -> dict[str, str]:
    """Return what clusters/environment.sh exports."""
    return dict(re.findall(r"^export (\w+)=(\S+)$", (CLUSTERS / "environment.sh").read_text(), re.MULTILINE))


def manifest(path: str) -> dict[str, Any]:
    """Return the one document of a YAML file below clusters/."""
    return yaml.safe_load((CLUSTERS / path).read_text())
