"""Points to log, and queries of what an MLflow store contains."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from ript_ray.tracking.metrics_log import MetricPoint


def point(update: int) -> MetricPoint:
    metrics = {"train/success_rate": update / 10, "ppo/loss": -0.1}
    return MetricPoint(update, 1000 * update, 2.5 * update, 1_700_000_000_000 + update, metrics, "update")


def points(*updates: int) -> list[MetricPoint]:
    return [point(update) for update in updates]


def only_run(store: str, experiment_name: str = "line") -> Any:
    """Return the only run of an experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(experiment_name)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def list_experiments(store: str) -> list[str]:
    from mlflow import MlflowClient

    return [experiment.name for experiment in MlflowClient(store).search_experiments()]


def history(store: str, name: str = "train/success_rate") -> list[tuple[int, float]]:
    """Step and value of a metric of the only run; duplicates are listed."""
    from mlflow import MlflowClient

    stored = MlflowClient(store).get_metric_history(only_run(store).info.run_id, name)
    return [(metric.step, metric.value) for metric in stored]


def rates(*updates: int) -> list[tuple[int, float]]:
    return [(update, update / 10) for update in updates]


def doubled_points(store: str) -> list[tuple[str, int]]:
    """Name and step of all points that a sqlite store has more than once in a run.

    Updates of small tests are shorter than the seconds that `by_wall_s/` counts, so several may share one.
    """
    with contextlib.closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as database:
        query = "SELECT key, step FROM metrics GROUP BY run_uuid, key, step HAVING count(*) > 1"
        return [row for row in database.execute(query) if not row[0].startswith("by_wall_s/")]


def events_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of all scalars in the event files of a folder."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.iterdir()):
        content, at = file.read_bytes(), 0
        while at < len(content):  # length (8 bytes), its checksum (4), an event, its checksum (4)
            size = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + size])
            at += size + 16
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found
