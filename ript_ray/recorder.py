"""What a run writes down while it goes on: metrics, checkpoints, and at the end its results."""

import json
from collections import Counter
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from ript_ray import checkpoint
from ript_ray.build import PolicySource
from ript_ray.config import Experiment
from ript_ray.evaluate import EvaluationResult
from ript_ray.filters import REJECTIONS, Verdict
from ript_ray.plot import plot_curve
from ript_ray.run_folder import RunFolder
from ript_ray.tracking import Point, RunStatus, Tracker, now_ms
from ript_ray.train import Collection, Outcome, UpdateRecord
from ript_ray.types import Weights
from ript_ray.weights import apply


class Recorder:
    """Keeps a run's books. Everything it knows lands in the run's folder; metrics go to MLflow as well.

    A context manager: however the block ends, the last weights are saved and the MLflow run is closed.
    """

    def __init__(self, folder: RunFolder, source: PolicySource):
        """Save the policy that RIPT starts from, and open journal and MLflow run."""
        self.num_updates = 0
        self.tracking_problem: str | None = None
        self._experiment: Experiment = source.experiment
        self._folder = folder
        self._policy = source()
        self._env_steps = 0
        self._num_rollouts = 0
        self._verdicts: Counter[Verdict] = Counter()
        self._unsaved: Weights | None = None
        self._points: list[Point] = []
        checkpoint.save(folder.checkpoint(0), source)
        self._tracker = Tracker(
            folder.journal,
            experiment=source.experiment.name,
            run=folder.name,
            params=flatten(asdict(source.experiment)),
            tags={"folder": str(folder.path), **folder.versions},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._save_weights()
        finally:
            failed = RunStatus.KILLED if kind is KeyboardInterrupt else RunStatus.FAILED
            self.tracking_problem = self._tracker.close(RunStatus.FINISHED if kind is None else failed)

    def on_group(self, collection: Collection) -> None:
        """Nothing is written before an update ends."""

    def on_update(self, record: UpdateRecord) -> None:
        """Book a finished update, and save its weights when it is time to."""
        collection, report = record.collection, record.report
        self._count(collection)
        self.num_updates = collection.update
        self._unsaved = record.weights
        if collection.update % self._experiment.checkpoint_every == 0:
            self._save_weights()
        metrics = {
            "train/success_rate": collection.success_rate,
            "train/num_rollouts": collection.num_rollouts,
            "train/env_steps": self._env_steps,
            "train/env_steps_per_s": collection.env_steps / record.rollout_s,
            "train/record_bytes": collection.record_bytes,
            "groups/accepted": collection.verdicts[Verdict.ACCEPTED],
            **{f"groups/{verdict}": collection.verdicts[verdict] for verdict in REJECTIONS},
            **{f"ppo/{name}": value for name, value in asdict(report).items() if name != "learn_s"},
            "time/rollout_s": record.rollout_s,
            "time/learn_s": report.learn_s,
            "time/broadcast_s": record.broadcast_s,
        }
        self._points.append(self._log(metrics))

    def on_end(self, outcome: Outcome) -> None:
        """Book the rollouts of an update that never came about, and save the last weights."""
        if outcome.last is not None:
            self._count(outcome.last)
        self._save_weights()

    def on_evaluation(self, result: EvaluationResult) -> None:
        """Book a measurement of the present weights."""
        rates = {f"eval/success_rate/{task}": rate.success_rate for task, rate in result.per_task.items()}
        self._log({"eval/success_rate": result.overall.success_rate, **rates})

    def write_results(self, before: EvaluationResult, after: EvaluationResult, outcome: Outcome) -> None:
        """Write the results and draw the curve."""
        results: dict[str, Any] = {
            "before": before.to_json(),
            "after": after.to_json(),
            "wall_s": round(self._folder.wall_s, 2),
            "env_steps": self._env_steps,
            "evaluation_env_steps": before.num_env_steps + after.num_env_steps,
            "num_rollouts": self._num_rollouts,
            "num_updates": self.num_updates,
            "groups_accepted": self._verdicts[Verdict.ACCEPTED],
            "groups_rejected": {str(verdict): self._verdicts[verdict] for verdict in REJECTIONS},
            "stopped_early": str(outcome.exhausted) if outcome.exhausted else None,
        }
        self._folder.results.write_text(json.dumps(results, indent=2) + "\n")
        title = f"{self._experiment.name}, seed {self._experiment.seed}"
        plot_curve(self._folder.curve, self._points, before=before.overall, after=after.overall, title=title)
        self._tracker.log_files([self._folder.results, self._folder.curve])

    def _count(self, collection: Collection) -> None:
        self._env_steps += collection.env_steps
        self._num_rollouts += collection.num_rollouts
        self._verdicts.update(collection.verdicts)

    def _log(self, metrics: dict[str, float]) -> Point:
        point = Point(self.num_updates, self._env_steps, self._folder.wall_s, now_ms(), metrics)
        self._tracker.log(point)
        return point

    def _save_weights(self) -> None:
        if self._unsaved is None:
            return
        apply(self._unsaved, self._policy)
        self._unsaved = None
        source = PolicySource(self._experiment, self._policy.state_arrays())
        checkpoint.save(self._folder.checkpoint(self.num_updates), source)


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `outer.inner` -> text, the form MLflow compares runs by."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)
    return flat
