"""The folder a run leaves behind: everything needed to read, compare and repeat it."""

import functools
import importlib.metadata
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Self

from ript_ray.config import Experiment
from ript_ray.serialization import experiment_to_json

PACKAGES = ("ript-ray", "ray", "torch", "numpy", "metaworld", "mujoco", "gymnasium", "mlflow", "safetensors")


class RunFolder:
    """The folder runs/<experiment>/<time>-seed<seed>/ of one run."""

    def __init__(self, path: Path, earlier_s: float = 0.0):
        """Use the folder at `path`, whose run has lasted `earlier_s` seconds already."""
        self.path = path
        self.versions = versions()
        self._started = time.perf_counter() - earlier_s

    @classmethod
    def create(cls, root: Path, experiment: Experiment) -> Self:
        """Create the folder, with the resolved configuration and the versions of everything in it."""
        parent = root / experiment.name
        parent.mkdir(parents=True, exist_ok=True)
        folder = cls(_create_unique(parent, f"{time.strftime('%Y%m%d-%H%M%S')}-seed{experiment.seed}"))
        (folder.path / "config.json").write_text(experiment_to_json(experiment))
        (folder.path / "versions.json").write_text(json.dumps(folder.versions, indent=2) + "\n")
        return folder

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
    def before(self) -> Path:
        """Success before post-training, kept for a run that is resumed."""
        return self.path / "before.json"

    @property
    def results(self) -> Path:
        """What the run found."""
        return self.path / "results.json"

    @property
    def curve(self) -> Path:
        """The training curve as a picture."""
        return self.path / "curve.png"

    def checkpoint(self, update: int) -> Path:
        """Where the weights after `update` updates belong."""
        return self.path / "checkpoints" / f"update-{update:05d}"


@functools.cache
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
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # else an installed copy names a foreign repository
        commit = _git("rev-parse", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
