"""What a run writes down while it goes on: metrics, checkpoints, and at the end its results."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ript_ray import checkpoint
from ript_ray.build import PolicySource
from ript_ray.checkpoint import Training
from ript_ray.config import Experiment
from ript_ray.errors import TrackingError
from ript_ray.evaluate import EvaluationResult
from ript_ray.files import write_whole
from ript_ray.filters import REJECTIONS, Verdict
from ript_ray.mlflow_store import Identity, MlflowRun, Point
from ript_ray.plot import plot_curve
from ript_ray.run_folder import RunFolder
from ript_ray.serialization import experiment_from_json
from ript_ray.tracking import RunStatus, Tracker, now_ms, read_journal
from ript_ray.train import Collection, Outcome, UpdateRecord
from ript_ray.weights import apply


class Recorder:
    """Keeps a run's books. Everything it knows lands in the run's folder; metrics go to MLflow as well.

    A context manager: however the block ends, the last weights are saved and the MLflow run is closed.
    """

    def __init__(self, folder: RunFolder, source: PolicySource, training: Training | None = None):
        """Open journal and MLflow run.

        Args:
            folder: The run's folder.
            source: The policy that training starts from; saved as the checkpoint of update 0.
            training: Where an earlier process left off; `source` is then the policy of that moment.
        """
        totals = training.totals if training else {}
        self.num_updates = training.progress.update if training else 0
        self.tracking_problem: str | None = None
        self._experiment: Experiment = source.experiment
        self._folder = folder
        self._policy = source()
        self._env_steps = int(totals.get("env_steps", 0))
        self._num_rollouts = int(totals.get("num_rollouts", 0))
        self._verdicts = Counter({verdict: int(totals.get(f"groups/{verdict}", 0)) for verdict in Verdict})
        self._unsaved: UpdateRecord | None = None
        self._points = rewind_journal(folder.journal, self.num_updates)
        if training is None:
            checkpoint.save(folder.checkpoint(0), source)
        self._tracker = Tracker(folder.journal, identity_of(folder, source.experiment))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._save(resumable=False)  # what runs the learner has gone
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
        self._unsaved = record
        metrics = {
            "train/success_rate": collection.success_rate,
            "train/num_rollouts": collection.num_rollouts,
            "train/env_steps": self._env_steps,
            "train/env_steps_per_s": collection.env_steps / record.rollout_s,
            "train/record_bytes": collection.record_bytes,
            "groups/accepted": collection.verdicts[Verdict.ACCEPTED],
            **{f"groups/{verdict}": collection.verdicts[verdict] for verdict in REJECTIONS},
            **{f"ppo/{name}": value for name, value in asdict(report).items() if name != "learn_s"},
            "faults/actors_replaced": record.faults.num_replaced,
            "faults/groups_lost": record.faults.num_lost,
            "time/rollout_s": record.rollout_s,
            "time/learn_s": report.learn_s,
            "time/broadcast_s": record.broadcast_s,
        }
        self._points.append(self._log(metrics))
        if collection.update % self._experiment.checkpoint_every == 0:
            self._save(resumable=True)

    def on_end(self, outcome: Outcome) -> None:
        """Book the rollouts of an update that never came about, and save the last weights."""
        self._save(resumable=True)  # before counting rollouts that a resumed run would do again
        if outcome.last is not None:
            self._count(outcome.last)

    def on_evaluation(self, result: EvaluationResult) -> None:
        """Book a measurement of the present weights."""
        rates = {f"eval/success_rate/{task}": rate.success_rate for task, rate in result.per_task.items()}
        self._log({"eval/success_rate": result.overall.success_rate, **rates})
        if self.num_updates == 0:
            write_whole(self._folder.before, json.dumps(result.to_json(), indent=2) + "\n")

    def write_results(self, before: EvaluationResult, after: EvaluationResult, outcome: Outcome) -> None:
        """Write the results and draw the curve."""
        results: dict[str, Any] = {
            "before": before.to_json(),
            "after": after.to_json(),
            "wall_s": round(self._folder.wall_s, 2),
            "env_steps": self._env_steps,
            "num_rollouts": self._num_rollouts,
            "num_updates": self.num_updates,
            "groups_accepted": self._verdicts[Verdict.ACCEPTED],
            "groups_rejected": {str(verdict): self._verdicts[verdict] for verdict in REJECTIONS},
            "stopped_early": str(outcome.exhausted) if outcome.exhausted else None,
        }
        title = f"{self._experiment.name}, seed {self._experiment.seed}"
        plot_curve(self._folder.curve, self._points, before=before.overall, after=after.overall, title=title)
        write_whole(self._folder.results, json.dumps(results, indent=2) + "\n")  # last: it says that the run has ended
        self._tracker.log_files([self._folder.results, self._folder.curve])

    def _count(self, collection: Collection) -> None:
        self._env_steps += collection.env_steps
        self._num_rollouts += collection.num_rollouts
        self._verdicts.update(collection.verdicts)

    def _log(self, metrics: dict[str, float]) -> Point:
        point = Point(self.num_updates, self._env_steps, self._folder.wall_s, now_ms(), metrics)
        self._tracker.log(point)
        return point

    def _save(self, *, resumable: bool) -> None:
        if self._unsaved is None:
            return
        record = self._unsaved
        apply(record.weights, self._policy)
        source = PolicySource(self._experiment, self._policy.state_arrays())
        training = None
        if resumable:
            verdicts = {f"groups/{verdict}": count for verdict, count in self._verdicts.items()}
            sums = {"env_steps": self._env_steps, "num_rollouts": self._num_rollouts, "wall_s": self._folder.wall_s}
            training = Training(record.progress, {**sums, **verdicts}, record.learner_state())
        folder = self._folder.checkpoint(record.progress.update)
        if not folder.exists():  # it does where an interrupt came between saving and the next line
            checkpoint.save(folder, source, training)
        self._unsaved = None


def rewind_journal(journal: Path, num_updates: int) -> list[Point]:
    """Drop what the journal says of updates that will be done again; returns the training points that stay."""
    kept = [point for point in read_journal(journal) if point.update <= num_updates]
    if journal.exists():
        write_whole(journal, "".join(json.dumps(vars(point)) + "\n" for point in kept))
    return [point for point in kept if "train/success_rate" in point.metrics]


def identity_of(folder: RunFolder, experiment: Experiment) -> Identity:
    """How a run is known in the tracking store."""
    return Identity(
        experiment=experiment.name,
        run=folder.name,
        params=flatten(asdict(experiment)),
        tags={"folder": str(folder.path), **folder.versions},
        id_file=folder.path / "mlflow-run-id",
    )


def sync_tracking(folder: RunFolder) -> int:
    """Send a run's journal and results to the tracking store; returns the number of points in it.

    What has arrived before is not stored twice.

    Raises:
        CheckpointError: The folder is not that of a run.
        TrackingError: The store does not take it.
    """
    experiment = experiment_from_json(folder.path / "config.json")
    points = read_journal(folder.journal)
    try:
        run = MlflowRun(identity_of(folder, experiment))
        for point in points:
            run.log(point)
        run.log_files([path for path in (folder.results, folder.curve) if path.exists()])
        run.end(RunStatus.FINISHED if folder.results.exists() else RunStatus.KILLED)
    except Exception as error:  # boundary: a store raises whatever its client library raises
        raise TrackingError(f"the tracking store does not take the run: {type(error).__name__}: {error}") from error
    return len(points)


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `outer.inner` -> text, the form MLflow compares runs by."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)
    return flat
