"""Where a run comes from and which MLflow store has its metrics: what `tracking.json` in its folder remembers."""

import contextlib
import getpass
import json
import os
import re
import shlex
import sqlite3
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, Self, get_args
from urllib.request import url2pathname

import pydantic

from ript_ray.checks import require
from ript_ray.errors import CheckpointError
from ript_ray.storage.atomic import atomic_write
from ript_ray.storage.reading import read_object

MLFLOW_URI = "MLFLOW_TRACKING_URI"
ORIGIN = "tracking.json"
SQLITE = "sqlite:///"

TrackerName = Literal["mlflow", "tensorboard"]


@dataclass(frozen=True)
class Origin:
    """Who started a run with what, and where its metrics go.

    Attributes:
        trackers: Where metrics go besides metrics.jsonl: mlflow, tensorboard, both, or none.
        description: The question that the run asks, in words: the docstring of its launcher.
        source: The command that started it.
        user: Who started it.
        uri: The MLflow store that MLFLOW_TRACKING_URI named then; None is the database beside the folder of the runs.
        sweep: Id of the sweep that it is a trial of, if any: that of a run which MLflow shows above it.
    """

    trackers: tuple[TrackerName, ...] = ("mlflow",)
    description: str = ""
    source: str = ""
    user: str = ""
    uri: str | None = None
    sweep: str | None = None

    @classmethod
    def here(cls, trackers: tuple[TrackerName, ...] = ("mlflow",), description: str = "") -> Self:
        """Return the origin of what this process starts; raises ConfigError where a tracker is unknown."""
        unknown = [name for name in trackers if name not in get_args(TrackerName)]
        require(not unknown, f"trackers must be {' or '.join(get_args(TrackerName))}, not {', '.join(unknown)}")
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's user may have no name
            user = str(os.getuid())
        store = _named_store()
        return cls(trackers, description, _command(), user, store and without_password(store))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the origin of the run in a folder; of one that does not say it, or not legibly, the defaults."""
        try:
            known = {field.name for field in fields(cls)}
            content = {name: value for name, value in read_object(folder / ORIGIN).items() if name in known}
            return pydantic.TypeAdapter(cls).validate_json(json.dumps(content), strict=True)
        except (CheckpointError, pydantic.ValidationError):
            return cls()

    def write(self, folder: Path) -> None:
        """Remember it in the run's folder.

        Raises:
            StorageError: The file cannot be written.
        """
        atomic_write(folder / ORIGIN, json.dumps(asdict(self), indent=2) + "\n")

    def store(self, folder: Path, experiment: str) -> str:
        """Return the URI of the MLflow store of the run in a folder: a moved run finds the database that moved with it.

        MLFLOW_TRACKING_URI wins; then the store that it named at the start; else the database beside the folder of the
        runs, where that is RUNS/<experiment>/<run>, or beside the run.
        """
        place = folder.absolute().parent
        project = place.parent.parent if place.name == experiment else place
        return _named_store() or self.uri or f"{SQLITE}{project / 'mlflow.db'}"

    def has_store(self, folder: Path, experiment: str) -> bool:
        """Return whether the store of the run in a folder is there, as far as that is known without asking it."""
        store = self.store(folder, experiment)
        return not store.startswith(SQLITE) or Path(store.removeprefix(SQLITE)).exists()


def _named_store() -> str | None:
    """The store that the environment names, the same one for any working directory."""
    uri = os.environ.get(MLFLOW_URI)
    if uri and uri.startswith(SQLITE):
        return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}"
    return uri or None


def without_password(uri: str) -> str:
    """Return a URI as files and logs may have it: without the user and the password of its host or its query."""
    if uri.startswith(SQLITE):
        return uri
    return re.sub(r"([?&](?:user|password|token)=)[^&]*", r"\1***", re.sub(r"//.*@", "//", uri))


def _command() -> str:
    """The module or program that this process runs, as it would be typed."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec is not None else Path(sys.argv[0]).name


def ui_command(store: str) -> str:
    """Return how to look at a store: a command for a shell without this environment's programs, or an address."""
    if store.startswith("http"):
        return f"open {without_password(store)}"
    python = Path(sys.executable)
    shown = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    return f"{shlex.quote(str(shown))} -m mlflow ui --backend-store-uri {shlex.quote(without_password(store))}"


def artifact_location(store: str) -> str | None:
    """Return where the artifacts of a database's experiments go: beside it; None for stores that decide themselves."""
    if not store.startswith(SQLITE):
        return None
    return Path(store.removeprefix(SQLITE)).resolve().with_name("mlruns").as_uri()


def follow_a_move(store: str) -> None:
    """After a database has been moved or copied, have its artifacts in the folder that moved along with it.

    MLflow stores absolute locations: without this, it would look for artifacts, and write them, where the database was.
    """
    location = artifact_location(store)
    database = Path(store.removeprefix(SQLITE))
    if location is None or not database.is_file():
        return
    with (
        contextlib.suppress(
            sqlite3.OperationalError
        ),  # without MLflow's tables, or locked: the next command tries again
        contextlib.closing(sqlite3.connect(database, timeout=5)) as connection,
        connection,
    ):
        for (earlier,) in connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall():
            if _is_moved(earlier, location):
                change = {"earlier": earlier, "now": location, "length": len(earlier)}
                connection.execute(
                    "UPDATE experiments SET artifact_location = :now WHERE artifact_location = :earlier", change
                )
                connection.execute(
                    "UPDATE runs SET artifact_uri = :now || substr(artifact_uri, :length + 1)"
                    " WHERE substr(artifact_uri, 1, :length + 1) = :earlier || '/'",
                    change,
                )


def _is_moved(earlier: str | None, location: str) -> bool:
    """Whether a location is one that `artifact_location` gave to a database somewhere else, and has moved with it."""
    if earlier is None or earlier == location or not earlier.startswith("file:///"):
        return False
    before, now = (Path(url2pathname(each.removeprefix("file://"))) for each in (earlier, location))
    return before.name == "mlruns" and (now.exists() or not before.exists())
