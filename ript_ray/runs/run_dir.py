"""The folder a run leaves behind: everything needed to read, compare and repeat it."""

import contextlib
import fcntl
import json
import os
import platform
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from ript_ray.config.experiment import Experiment
from ript_ray.config.serialization import experiment_to_json
from ript_ray.errors import CheckpointError, RunInUseError
from ript_ray.runs.provenance import versions
from ript_ray.storage.atomic import atomic_write, os_errors_as_storage_error
from ript_ray.types import Stage

CHECKPOINT_PREFIXES = {Stage.AUTOENCODER: "autoencoder", Stage.PRIOR: "prior", Stage.RIPT: "update"}
"""What the names of checkpoints begin with."""


class RunDir:
    """The folder runs/<experiment>/<time>-seed<seed>/ of one run."""

    def __init__(self, path: Path):
        """Use the folder at `path`."""
        self.path = path
        self._opened = time.perf_counter()

    @classmethod
    def create(cls, root: Path, experiment: Experiment) -> Self:
        """Create the folder, with the run's id, the resolved configuration and the versions of everything in it.

        Raises:
            StorageError: The disk does not take it.
        """
        parent = root / experiment.name
        with os_errors_as_storage_error(parent):
            parent.mkdir(parents=True, exist_ok=True)
            folder = cls(_create_unique(parent, f"{time.strftime('%Y%m%d-%H%M%S')}-seed{experiment.seed}"))
        atomic_write(folder.path / "run-id", uuid.uuid4().hex)
        atomic_write(folder.path / "versions.json", json.dumps(versions(), indent=2) + "\n")
        atomic_write(folder.config, experiment_to_json(experiment))
        return folder

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other process from writing to the run; the system lets go when this process dies.

        Raises:
            CheckpointError: The folder is not that of a run; nothing is created in it.
            RunInUseError: Another process holds it; the message names folder and process.
        """
        if not self.config.is_file():
            raise CheckpointError(f"{self.path} is not the folder of a run: it has no {self.config.name}")
        with os_errors_as_storage_error(self.path / ".lock"):
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, self.path)
            yield
        finally:
            os.close(descriptor)

    @property
    def name(self) -> str:
        """Name of the run: time and seed."""
        return self.path.resolve().name

    @property
    def run_id(self) -> str:
        """What the run is known by in every tracking store: 32 hexadecimal digits."""
        path = self.path / "run-id"
        if not path.exists():  # the folder is older than such ids
            atomic_write(path, uuid.uuid4().hex)
        return path.read_text().strip()

    @property
    def versions(self) -> dict[str, str]:
        """Versions of everything when the run began.

        Raises:
            CheckpointError: They are missing or cannot be read.
        """
        path = self.path / "versions.json"
        try:
            return {str(name): str(version) for name, version in json.loads(path.read_text()).items()}
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error!r}") from error

    @property
    def open_s(self) -> float:
        """Seconds since this process opened the folder."""
        return time.perf_counter() - self._opened

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.json"

    @property
    def metrics_log(self) -> Path:
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
    def status(self) -> Path:
        """How the run ended; missing while it goes on and where it was killed."""
        return self.path / "status.json"

    @property
    def curve(self) -> Path:
        """The training curve as a picture."""
        return self.path / "curve.png"

    @property
    def groups(self) -> Path:
        """One JSON object per group of rollouts."""
        return self.path / "groups.jsonl"

    @property
    def weights(self) -> Path:
        """Folder of the trainable weights of each update."""
        return self.path / "weights"

    @property
    def videos(self) -> Path:
        """Folder of videos of its rollouts."""
        return self.path / "videos"

    def checkpoint(self, number: int, stage: Stage = Stage.RIPT) -> Path:
        """Where the weights after so many updates belong; in a supervised stage, after so many optimiser steps."""
        return self.path / "checkpoints" / checkpoint_name(number, stage)


def checkpoint_name(number: int, stage: Stage) -> str:
    """Name of a checkpoint's folder: update-00012, prior-0000500."""
    return f"{CHECKPOINT_PREFIXES[stage]}-{number:0{5 if stage is Stage.RIPT else 7}d}"


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
        raise RunInUseError(f"{folder} is in use by {holder}") from None
    with contextlib.suppress(OSError):  # the name is for people: a full disk must not keep a run from being synced
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)


def _create_unique(parent: Path, stem: str) -> Path:
    for attempt in range(1, 1000):
        path = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"{parent} holds a thousand runs named {stem}")
