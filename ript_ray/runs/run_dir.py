"""The directory a run leaves behind: everything needed to read, compare and repeat it."""

import contextlib
import fcntl
import json
import os
import platform
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from ript_ray.checks import require
from ript_ray.config.experiment import Experiment
from ript_ray.config.serialization import read_experiment, to_json
from ript_ray.errors import CheckpointError, RunInUseError, StorageError
from ript_ray.runs.provenance import differences, versions
from ript_ray.storage.atomic import atomic_write, fsync_path, make_directory, os_errors_as_storage_error
from ript_ray.storage.jsonl import AppendOnlyLog, parse_lines
from ript_ray.types import RIPT

POST_TRAINING_PREFIX = "update"
"""What the names of post-training checkpoints begin with; those of a supervised stage begin with its name."""


class RunDir:
    """The directory runs/<experiment>/<time>-seed<seed>/ of one run.

    Attributes:
        path: The directory.
        config: The resolved experiment.
        metrics_log: One JSON object per update, evaluation or point of a supervised stage.
        groups: One JSON object per group of rollouts.
        before: Success before post-training, kept for a run that is resumed.
        results: What the run found; its presence says that the run has finished.
        resumptions: One JSON object per time that the run was resumed: from where, and with which versions.
        machine: Where its last process ran: the cluster's settings, cores, processor.
        status: How the run ended; missing while it runs and where it was killed.
        curve: The training curve as an image.
        weights: Folder of the trainable weights of each update.
        kept_groups: Folder of groups that no checkpoint has made superfluous yet; missing once the run has ended.
        videos: Folder of videos of its rollouts.
        best: A link to the checkpoint that is best on the validation contexts, if they are evaluated during training.
    """

    def __init__(self, path: Path):
        """Use the directory at `path`; nothing is created."""
        self.path = path
        self.config = path / "config.json"
        self.metrics_log = path / "metrics.jsonl"
        self.groups = path / "groups.jsonl"
        self.before = path / "before.json"
        self.results = path / "results.json"
        self.resumptions = path / "resumed.jsonl"
        self.machine = path / "machine.json"
        self.status = path / "status.json"
        self.curve = path / "curve.png"
        self.weights = path / "weights"
        self.kept_groups = path / "kept-groups"
        self.videos = path / "videos"
        self.best = path / "checkpoints" / "best"

    @classmethod
    def create(cls, root: Path, experiment: Experiment, label: str = "") -> Self:
        """Create the directory with the run's id, the resolved experiment and the versions of all software.

        Args:
            root: Folder of the runs of all experiments.
            experiment: What is learned.
            label: A word at the end of the run's name, if any.

        Raises:
            ConfigError: The label is not a word.
            StorageError: Something cannot be written.
        """
        is_word = re.fullmatch(r"[\w.+-]*", label) is not None
        require(is_word, f"label must be one word of letters, digits and . _ + -, not {label!r}")
        parent = root / experiment.name
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-seed{experiment.seed}"
        with os_errors_as_storage_error(parent):
            make_directory(parent)
            run = cls(_create_unique(parent, f"{stem}-{label}" if label else stem))
            fsync_path(parent)
        atomic_write(run.path / "run-id", uuid.uuid4().hex)
        atomic_write(run.path / "versions.json", json.dumps(versions(experiment.benchmark.packages), indent=2) + "\n")
        atomic_write(run.config, to_json(experiment))
        return run

    @property
    def experiment(self) -> Experiment:
        """The resolved experiment; raises CheckpointError where it cannot be read."""
        return read_experiment(self.config)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other process from writing to the run; the operating system unlocks when this process dies.

        Raises:
            CheckpointError: The directory is not that of a run; nothing is created in it.
            RunInUseError: Another process holds the lock; the message names directory and process.
            StorageError: The file system has no locks, or is not writable.
        """
        self.require_run()
        with os_errors_as_storage_error(self.path / ".lock"):
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, self.path)
            yield
        finally:
            os.close(descriptor)

    def require_run(self) -> None:
        """Check that this is the directory of a run.

        Raises:
            CheckpointError: It is not.
        """
        if not self.config.is_file():
            raise CheckpointError(f"{self.path} is not the folder of a run: it has no {self.config.name}")

    @property
    def name(self) -> str:
        """Name of the run: time, seed and, if any, a word of the user's."""
        return self.path.resolve().name

    @property
    def run_id(self) -> str:
        """The run's id in every tracking store: 32 hexadecimal digits."""
        return self._run_ids[-1]

    @property
    def replaced_run_ids(self) -> tuple[str, ...]:
        """Ids that the run had before; see `renew_run_id`."""
        return self._run_ids[:-1]

    def renew_run_id(self) -> None:
        """Give the run another id: what was tracked under the present one is no longer true."""
        atomic_write(self.path / "run-id", "\n".join([*self._run_ids, uuid.uuid4().hex]))

    @property
    def _run_ids(self) -> tuple[str, ...]:
        path = self.path / "run-id"
        if not path.exists():  # the directory is older than such ids
            atomic_write(path, uuid.uuid4().hex)
        return tuple(path.read_text().split())

    @property
    def versions(self) -> dict[str, str]:
        """Versions of all software when the run began.

        Raises:
            CheckpointError: They are missing or cannot be read.
        """
        path = self.path / "versions.json"
        try:
            return {str(name): str(version) for name, version in json.loads(path.read_text()).items()}
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error!r}") from error

    def record_resumption(self, point: str, now: dict[str, str]) -> None:
        """Record that the run is resumed from `point`, the name of a checkpoint, with the versions `now`."""
        log = AppendOnlyLog(self.resumptions, "resumptions")
        log.append(json.dumps({"time": time.strftime("%Y-%m-%d %H:%M:%S"), "from": point, "versions": now}))
        log.flush()  # a full disk must not keep a run from going on

    @property
    def resumed_versions(self) -> dict[str, str]:
        """What processes that resumed the run changed of `versions`, by name; the last one counts."""
        later, _ = parse_lines(self.resumptions, lambda line: dict(json.loads(line)["versions"]))
        return {name: now[name] for now in later for name in differences(self.versions, now)}

    def extend(self, experiment: Experiment, end: int) -> None:
        """Reopen a run that has finished, for more updates.

        Args:
            experiment: The experiment with more updates.
            end: Updates so far; the results are kept under their number.

        Raises:
            StorageError: A file cannot be written.
        """
        if self.results.exists():  # first: a run without results can be resumed, whatever its configuration says
            with os_errors_as_storage_error(self.results):
                self.results.rename(self.earlier_results(end))
                fsync_path(self.path)
        atomic_write(self.config, to_json(experiment))

    def write_status(self, status: str) -> None:
        """Write how the run has ended.

        Raises:
            StorageError: It cannot be written.
        """
        atomic_write(self.status, json.dumps({"status": status}) + "\n")

    def earlier_results(self, update: int) -> Path:
        """Return where the results are kept of a run that ended after `update` and was extended."""
        return self.path / f"results-{update:05d}.json"

    def checkpoint(self, number: int, stage: str = RIPT) -> Path:
        """Return where the checkpoint of an update belongs; in a supervised stage, of an optimizer step."""
        return self.path / "checkpoints" / checkpoint_name(number, stage)


def checkpoint_name(number: int, stage: str) -> str:
    """Return the name of a checkpoint's folder: update-00012, prior-0000500."""
    return f"{POST_TRAINING_PREFIX}-{number:05d}" if stage == RIPT else f"{stage}-{number:07d}"


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
        raise RunInUseError(f"{folder} is in use by {holder}") from None
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be locked ({error}), so nothing would keep two processes from writing to it: keep runs "
            "on a file system with locks (flock); Lustre has them if it is mounted with -o flock, NFS from version 4 on"
        ) from error
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
