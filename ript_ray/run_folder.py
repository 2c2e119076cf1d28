"""The folder a run leaves behind: everything needed to read, compare and repeat it."""

import importlib.metadata
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from ript_ray.config import Experiment
from ript_ray.serialization import experiment_to_json

PACKAGES = ("ript-ray", "ray", "torch", "numpy", "metaworld", "mujoco", "gymnasium", "mlflow", "safetensors")


class RunFolder:
    """The folder runs/<experiment>/<time>-seed<seed>/ of one run."""

    def __init__(self, root: Path, experiment: Experiment):
        """Create the folder, with the resolved configuration and the versions of everything in it."""
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-seed{experiment.seed}"
        parent = root / experiment.name
        parent.mkdir(parents=True, exist_ok=True)
        self.path = _create_unique(parent, stem)
        self._started = time.perf_counter()
        (self.path / "config.json").write_text(experiment_to_json(experiment))
        self.write_json("versions.json", versions())

    @property
    def name(self) -> str:
        """Name of the run: time and seed."""
        return self.path.name

    @property
    def wall_s(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._started

    @property
    def journal(self) -> Path:
        """One JSON object per update."""
        return self.path / "metrics.jsonl"

    @property
    def curve(self) -> Path:
        """The training curve as a picture."""
        return self.path / "curve.png"

    def checkpoint(self, update: int) -> Path:
        """Where the weights after `update` updates belong."""
        return self.path / "checkpoints" / f"update-{update:05d}"

    def write_json(self, name: str, content: Any) -> Path:
        """Write a JSON file into the folder."""
        path = self.path / name
        path.write_text(json.dumps(content, indent=2) + "\n")
        return path


def versions() -> dict[str, str]:
    """Python, packages and the commit of the working tree ("+changes" where files differ from it)."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "commit": _commit()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def _create_unique(parent: Path, stem: str) -> Path:
    for attempt in range(1, 1000):
        path = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"{parent} holds a thousand runs named {stem}")


def _commit() -> str:
    source = Path(__file__).parent
    try:
        commit = _git(source, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(source, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
