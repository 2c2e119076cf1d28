"""Points to log, and queries of what an MLflow store contains."""

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
