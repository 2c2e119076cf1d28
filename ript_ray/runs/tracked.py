"""How a run is known to its trackers: name, parameters, tags, files."""

import hashlib
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ript_ray.config.changes import in_words
from ript_ray.config.experiment import Experiment
from ript_ray.config.serialization import flatten, to_json
from ript_ray.runs.run_dir import RunDir, run_of
from ript_ray.storage.reading import read_object
from ript_ray.tracking.metrics_log import MetricPoint
from ript_ray.tracking.mlflow_run import SEEDS_TAG, Identity
from ript_ray.tracking.store import Origin
from ript_ray.tracking.tensorboard import TensorBoardTracker
from ript_ray.tracking.tracker import MlflowTracker, Tracker

MAX_NAME = 100
"""Longest text of a run's changes in its name, in characters; the tag `changed` has all of it."""


def open_trackers(folder: RunDir, experiment: Experiment, earlier: Sequence[MetricPoint]) -> list[Tracker]:
    """Open the trackers that a run was started with, and give them the points of earlier processes."""
    origin = Origin.read(folder.path)
    trackers: list[Tracker] = []
    if "mlflow" in origin.trackers:
        trackers.append(
            MlflowTracker(tracking_identity(folder, experiment), origin.store(folder.path, experiment.name), earlier)
        )
    if "tensorboard" in origin.trackers:
        trackers.append(TensorBoardTracker(folder.path / "tensorboard", earlier))
    return trackers


def artifacts(folder: RunDir) -> list[Path]:
    """Return the files of a run that go to the tracking store."""
    files = (
        folder.config,
        folder.changes_file,
        folder.path / "versions.json",
        folder.machine,
        folder.groups,
        folder.results,
        folder.model_card,
        *sorted(folder.path.glob("*.png")),
        *sorted(folder.videos.glob("*.gif")),
    )
    return [path for path in files if path.is_file()]


def tracking_identity(folder: RunDir, experiment: Experiment) -> Identity:
    """Return how a run is known in the tracking store."""
    where = read_object(folder.machine) if folder.machine.exists() else {}
    same_but_seed = to_json(replace(experiment, seed=0, start_from=None))
    changes, origin = folder.changes, Origin.read(folder.path)
    tags = {
        "folder": folder.path.absolute(),
        "num_updates": experiment.num_updates,  # a parameter cannot change if the run is extended
        SEEDS_TAG: hashlib.sha256(same_but_seed.encode()).hexdigest(),  # of runs that differ in their seeds
        **({} if changes is None else {"changed": in_words(changes) or "nothing"}),
        **folder.versions,
        **{f"resumed.{name}": version for name, version in folder.resumed_versions.items()},
        **flatten({"machine": where.get("machine", {})}),
        **_columns(origin, folder.versions),
    }
    parent = _parent_of(experiment)
    if parent is not None:
        tags["started_from"] = parent.path.absolute()
    above = (parent.experiment_name, parent.run_id) if parent else None
    tasks = experiment.tasks[0] if len(experiment.tasks) == 1 else f"{len(experiment.tasks)}-tasks"
    changed = textwrap.shorten(in_words(changes or {}), MAX_NAME, placeholder=" ...", break_on_hyphens=False)
    group = changed or f"{tasks}-{experiment.policy.kind}"
    return Identity(
        run_id=folder.run_id,
        experiment=experiment.name,
        run=name_in_lists(folder, group),
        params=as_params({**asdict(experiment), "cluster": where.get("cluster", {})}),
        tags={name: str(value) for name, value in tags.items()},
        parent=(experiment.name, origin.sweep) if origin.sweep else above,
        replaced=folder.replaced_run_ids,
        group=group,
        started_ms=folder.started_ms,
    )


def as_params(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return nested settings as MLflow shows them: names with dots, lists as words."""
    return {
        name: " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        for name, value in flatten(settings).items()
    }


def name_in_lists(folder: RunDir, what: str) -> str:
    """Return a name for a list that shows its beginning: "seed0 clip-high=0.28 20261122-093000"."""
    return re.sub(r"^(\d{8}-\d{6})-(\S+)(.*)$", r"\2\3 \1", f"{folder.name} {what}")


def _columns(origin: Origin, versions: Mapping[str, str]) -> dict[str, str]:
    """Return the tags from which MLflow's interface fills its columns and a run's description."""
    commit = versions.get("commit", "unknown").removesuffix("+changes")
    columns = {
        "mlflow.user": origin.user,
        "mlflow.note.content": origin.description,
        "mlflow.source.name": origin.source,
        "mlflow.source.type": "LOCAL" if origin.source else "",
        "mlflow.source.git.commit": "" if commit == "unknown" else commit,
    }
    return {name: value for name, value in columns.items() if value}


def _parent_of(experiment: Experiment) -> RunDir | None:
    return run_of(experiment.start_from) if experiment.start_from is not None else None
