"""What a run was made with: versions of packages, the commit, a hash of the sources, the processor."""

import functools
import hashlib
import importlib.metadata
import importlib.resources
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

from ript_ray.runtime.host import processor

PACKAGES = ("ript-ray", "ray", "torch", "numpy", "gymnasium", "mlflow", "safetensors")
"""Recorded in every run, beside those of its benchmark."""


@functools.cache
def versions(packages: tuple[str, ...] = ()) -> dict[str, str]:
    """Return versions of Python and packages, the commit ("+changes" if files differ), a hash of the sources, the CPU.

    The hash identifies the code where no commit is known: in an installed copy, in what a job ships, in a container.
    "instructions" is what torch's kernels use of the processor: results may differ in their last bits with it.

    Args:
        packages: What the benchmark depends on; `PACKAGES` are always included.
    """
    import torch  # takes seconds, and who only reads runs needs no versions

    found = {"python": platform.python_version(), "platform": platform.platform()}
    found |= {"commit": _commit(), "sources_sha256": _sources_sha256()}
    found |= {"processor": processor(), "instructions": torch.backends.cpu.get_cpu_capability()}
    for package in (*PACKAGES, *packages):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Return what differs, by name, as "THEN (now NOW)"; what only one of them knows is left out."""
    return {name: f"{then[name]} (now {now[name]})" for name in sorted(then.keys() & now) if then[name] != now[name]}


def _sources_sha256() -> str:
    digest = hashlib.sha256()
    for package in ("ript_ray", "ript_envs"):
        root = Path(str(importlib.resources.files(package)))
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{root.name}/{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _commit() -> str:
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # else an installed copy names a foreign repository
        commit = _git("rev-parse", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
