"""The directory a run leaves behind: everything needed to read, compare and repeat it."""

import contextlib
import fcntl
import functools
import glob
import json
import logging
import os
import platform
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from ript_ray.checks import require
from ript_ray.config.experiment import Experiment
from ript_ray.config.serialization import read_experiment, to_json
from ript_ray.errors import CheckpointError, RunInUseError, StorageError
from ript_ray.runs.provenance import differences, versions
from ript_ray.storage.atomic import atomic_symlink, atomic_write, fsync_path, make_directory, os_errors_as_storage_error
from ript_ray.storage.jsonl import AppendOnlyLog, parse_lines
from ript_ray.storage.reading import parse_json, read_bytes, read_object
from ript_ray.types import RIPT

logger = logging.getLogger(__name__)

POST_TRAINING_PREFIX = "update"
"""What the names of post-training checkpoints begin with; those of a supervised stage begin with its name."""

LATEST = "latest"
"""Name of the link to the newest run of an experiment, beside its runs."""


DEMONSTRATIONS = "demonstrations"
"""Name in versions.json of who performs the demonstrations that the run's policy learned from."""

SCRIPTED = "scripted"
"""Our experts perform them, which see the simulator's state: figures cannot be held against published ones."""


class RunDir:
    """The directory runs/<experiment>/<time>-seed<seed>/ of one run.

    Attributes:
        path: The directory.
        config: The resolved experiment.
        changes_file: What its options changed of the experiment's file; see `changes`.
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
        """Use the directory at `path`, or the one that a link leads to now, such as `latest`; nothing is created."""
        path = path.resolve() if path.is_symlink() else path  # the link may lead elsewhere before this is done with
        self.path = path
        self.config = path / "config.json"
        self.changes_file = path / "changed.json"
        self.metrics_log = path / "metrics.jsonl"
        self.groups = path / "groups.jsonl"
        self.before = path / "before.json"
        self.results = path / "results.json"
        self.resumptions = path / "resumed.jsonl"
        self.machine = path / "machine.json"
        self.status = path / "status.json"
        self.curve = path / "curve.png"
        self.model_card = path / "model-card.md"
        self.weights = path / "weights"
        self.kept_groups = path / "kept-groups"
        self.videos = path / "videos"
        self.best = path / "checkpoints" / "best"

    @classmethod
    def create(
        cls,
        root: Path,
        experiment: Experiment,
        label: str = "",
        *,
        changes: Mapping[str, str] | None = None,
        demonstrations: str = "unknown",
    ) -> Self:
        """Create the directory with the run's id, the resolved experiment and the versions of all software.

        A link beside it, `latest`, leads to it from now on, where the file system has links.

        Args:
            root: Folder of the runs of all experiments.
            experiment: What is learned.
            label: A word at the end of the run's name, if any.
            changes: What its options changed of the experiment's file, if it has one; see `changed_options`.
            demonstrations: Who performs the demonstrations behind it; see `runs.lineage`.

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
        facts = {**versions(experiment.benchmark.packages), DEMONSTRATIONS: demonstrations}
        atomic_write(run.path / "versions.json", json.dumps(facts, indent=2) + "\n")
        if changes is not None:
            run._write_changes(changes)
        atomic_write(run.config, to_json(experiment))
        _mark_latest(run.path)
        return run

    @classmethod
    def find(cls, root: Path, experiment: Experiment, label: str) -> Self | None:
        """Return the newest run of an experiment and its seed that has a label; None if there is none.

        Args:
            root: Folder of the runs of all experiments.
            experiment: What is learned.
            label: The word at the end of the run's name.
        """
        pattern = f"????????-??????-seed{experiment.seed}-{glob.escape(label)}"
        found = map(cls, sorted((root / experiment.name).glob(pattern), reverse=True))
        return next((run for run in found if run.config.is_file()), None)  # else it was killed as it began

    @property
    def experiment(self) -> Experiment:
        """The resolved experiment; raises CheckpointError where it cannot be read."""
        return read_experiment(self.config)

    @property
    def experiment_name(self) -> str:
        """The experiment's name, also where its policy or benchmark is of a kind that is not known here.

        Raises:
            CheckpointError: The configuration cannot be read.
        """
        try:
            return str(read_object(self.config)["name"])
        except KeyError as error:
            raise CheckpointError(f"{self.config} does not describe an experiment: it has no name") from error

    @property
    def runs_folder(self) -> Path | None:
        """The folder of the runs of all experiments, if this one lies in it as every run does at first; else None."""
        place = self.path.absolute().parent
        return place.parent if self.config.is_file() and place.name == self.experiment_name else None

    @property
    def started_ms(self) -> int | None:
        """When the run began, in milliseconds of Unix time, or None if that is not known any more."""
        path = self.path / "versions.json"  # written once, at the start
        return int(1000 * path.stat().st_mtime) if path.is_file() else None

    @property
    def changes(self) -> dict[str, str] | None:
        """What the run's options changed of its experiment's file, by option; none if that is not known."""
        try:
            return {name: str(value) for name, value in read_object(self.changes_file).items()}
        except CheckpointError:
            return None

    def _write_changes(self, changes: Mapping[str, str]) -> None:
        atomic_write(self.changes_file, json.dumps(dict(changes), indent=2) + "\n")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other process from writing to the run; the operating system unlocks when this process dies.

        Raises:
            CheckpointError: The directory is not that of a run; nothing is created in it.
            RunInUseError: Another process holds the lock; the message names directory and process.
            StorageError: The file system has no locks, or is not writable.
        """
        self.require_run()
        with locked(self.path / ".lock"):
            yield

    @property
    def is_running(self) -> bool:
        """Whether a process is working on the run now: it holds the lock."""
        try:
            descriptor = os.open(self.path / ".lock", os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # the file system has no locks: no run can be in progress on it
            return False
        finally:
            os.close(descriptor)
        return False

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
        content = read_bytes(path)
        if not re.fullmatch(rb"\s*[0-9a-f]{32}(\s+[0-9a-f]{32})*\s*", content):
            raise CheckpointError(
                f"{path} is damaged: it must hold ids of 32 hexadecimal digits; delete it, and the run gets another "
                "one, which is a new entry in the tracking store"
            )
        return tuple(content.decode().split())

    @functools.cached_property
    def versions(self) -> dict[str, str]:
        """Versions of all software when the run began; none, with a warning, if they cannot be read."""
        try:
            return {name: str(version) for name, version in read_object(self.path / "versions.json").items()}
        except CheckpointError as error:
            logger.warning("%s: whether anything has changed since the run began is not known", error)
            return {}

    @property
    def demonstrations(self) -> str:
        """Who performs the demonstrations that the run's policy learned from; see `runs.lineage`."""
        return self.versions.get(DEMONSTRATIONS, "unknown")

    def record_resumption(self, point: str, now: dict[str, str]) -> None:
        """Record that the run is resumed from `point`, the name of a checkpoint, with the versions `now`."""
        log = AppendOnlyLog(self.resumptions, "resumptions")
        log.append(json.dumps({"time": time.strftime("%Y-%m-%d %H:%M:%S"), "from": point, "versions": now}))
        log.flush()  # a full disk must not keep a run from going on

    @property
    def resumed_versions(self) -> dict[str, str]:
        """What processes that resumed the run changed of `versions`, by name; the last one counts."""
        later, _ = parse_lines(self.resumptions, lambda line: dict(parse_json(line)["versions"]))
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
        if (changes := self.changes) is not None:
            self._write_changes({**changes, "num-updates": str(experiment.num_updates)})
        atomic_write(self.config, to_json(experiment))

    def write_status(self, status: str, *, is_tracked: bool = True) -> None:
        """Write how the run has ended.

        Args:
            status: How.
            is_tracked: False where the tracking store is yet to be told.

        Raises:
            StorageError: It cannot be written.
        """
        content = {"status": status} if is_tracked else {"status": status, "is_tracked": False}
        atomic_write(self.status, json.dumps(content) + "\n")

    def earlier_results(self, update: int) -> Path:
        """Return where the results are kept of a run that ended after `update` and was extended."""
        return self.path / f"results-{update:05d}.json"

    def checkpoint(self, number: int, stage: str = RIPT) -> Path:
        """Return where the checkpoint of an update belongs; in a supervised stage, of an optimizer step."""
        return self.path / "checkpoints" / checkpoint_name(number, stage)


def checkpoint_name(number: int, stage: str) -> str:
    """Return the name of a checkpoint's folder: update-00012, prior-0000500."""
    return f"{POST_TRAINING_PREFIX}-{number:05d}" if stage == RIPT else f"{stage}-{number:07d}"


def may_lead_elsewhere(path: Path) -> bool:
    """Return whether a path to a run, or into it, leads by way of a link such as `latest`, which moves with time."""
    return path.is_symlink() or LATEST in path.parts


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep every other process from the folder of a lock file, which is created if need be; see `RunDir.lock`."""
    with os_errors_as_storage_error(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(descriptor, path.parent)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    for pause_s in (0.1, None):  # another process may hold it for a moment, to see whether the run is in progress
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if pause_s is None:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
                raise RunInUseError(f"{folder} is in use by {holder}") from None
            time.sleep(pause_s)
        except OSError as error:
            raise StorageError(
                f"{folder} cannot be locked ({error}), so nothing would keep two processes from writing to it: keep "
                "runs on a file system with locks (flock); Lustre has them if it is mounted with -o flock, NFS from "
                "version 4 on"
            ) from error
    with contextlib.suppress(OSError):  # the name is for people: a full disk must not keep a run from being synced
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)


def run_of(path: Path) -> RunDir | None:
    """Return the run that a path leads to, if it is one or a checkpoint of one."""
    return next((RunDir(each) for each in (path, path.parent.parent) if (each / "run-id").exists()), None)


def _mark_latest(run: Path) -> None:
    try:
        atomic_symlink(run.parent / LATEST, run.name)
    except OSError as error:  # boundary: the run itself is well without the link
        logger.warning("there is no link %s to this run: %s", run.parent / LATEST, error)


def _create_unique(parent: Path, stem: str) -> Path:
    for attempt in range(1, 1000):
        path = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"{parent} holds a thousand runs named {stem}")
