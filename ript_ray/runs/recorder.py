"""What a run writes down during post-training: metrics, checkpoints, and at the end its results."""

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from ript_ray.config.experiment import Experiment
from ript_ray.errors import CheckpointError, StorageError
from ript_ray.evaluation.comparison import Comparison
from ript_ray.evaluation.evaluate import EvaluationResult
from ript_ray.rl.callbacks import RolloutStats, TrainResult, UpdateRecord
from ript_ray.rl.dynamic_sampling import REJECTIONS, Verdict
from ript_ray.rl.ledger import Ledger, carry_over
from ript_ray.rl.weights import apply
from ript_ray.runs import checkpoint
from ript_ray.runs.checkpoint import TrainingState
from ript_ray.runs.run_logger import RunLogger
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.storage.atomic import atomic_write, os_errors_as_storage_error
from ript_ray.tracking.metrics_log import MetricPoint
from ript_ray.tracking.plot import plot_curve
from ript_ray.types import GroupSummary, Progress, Stage

logger = logging.getLogger(__name__)


class Recorder:
    """RunLogger post-training. Everything it knows lands in the run's folder; metrics go to MLflow as well.

    A context manager: however the block ends, the last weights are saved. A disk that takes nothing for a while does
    not end the run: writing is tried again after every update. At the end it must work.
    """

    def __init__(self, run_logger: RunLogger, source: SavedPolicy, training: TrainingState | None = None):
        """Save the policy that training starts from.

        Args:
            run_logger: The run's books.
            source: The policy that training starts from; saved as the checkpoint of update 0.
            training: Where an earlier process left off; `source` is then the policy of that moment.

        Raises:
            StorageError: The disk does not take the first checkpoint.
        """
        totals = training.totals if training else {}
        self.num_updates = training.progress.update if training else 0
        self._books = run_logger
        self._experiment: Experiment = source.experiment
        self._folder = run_logger.folder
        self._policy = source()
        self._env_steps = int(totals.get("env_steps", 0))
        self._num_rollouts = int(totals.get("num_rollouts", 0))
        self._verdicts = Counter({verdict: int(totals.get(f"groups/{verdict}", 0)) for verdict in Verdict})
        self._earlier_ledger = Ledger(**{name: int(totals.get(f"ledger/{name}", 0)) for name in asdict(Ledger())})
        self._ledger = carry_over(self._earlier_ledger, Ledger())
        self._num_skipped = int(totals.get("skipped_updates", 0))
        self._num_failed_saves = int(totals.get("failed_saves", 0))
        self._unsaved: UpdateRecord | None = None
        self._save_is_due = False
        self._before: EvaluationResult | None = None
        self._points = [point for point in run_logger.restored_points if point.is_update]
        if training is None:
            checkpoint.save(self._folder.checkpoint(0), source, TrainingState(Progress(), self._totals(), {}))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._save(resumable=False)  # what runs the learner has gone
        except (CheckpointError, StorageError):
            if kind is None:
                raise
            # Else the error that ends the run says more than this one.

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        """Nothing is written before an update ends."""

    def on_update(self, record: UpdateRecord) -> None:
        """Book a finished update, and save its weights when it is time to.

        Raises:
            CheckpointError: A weight is not finite.
        """
        self._count(record.stats)
        self.num_updates = record.stats.update
        self._unsaved = record
        self._ledger = carry_over(self._earlier_ledger, record.ledger)
        if record.report.error is not None:
            self._num_skipped += 1
            logger.warning("update %d was skipped: %s", self.num_updates, record.report.error)
        self._points.append(self._log({**metrics_of(record), **self._sums()}))
        self._save_is_due |= self.num_updates % self._experiment.checkpoint_every == 0
        if self._save_is_due:
            self._attempt(lambda: self._save(resumable=True))

    def on_end(self, train_result: TrainResult) -> None:
        """Book the rollouts of an update that never came about, and save the last weights.

        Raises:
            StorageError: The disk does not take them; the message names the checkpoint.
        """
        self._save(resumable=True)  # before counting rollouts that a resumed run would do again
        self._ledger = carry_over(self._earlier_ledger, train_result.ledger)
        if train_result.last is not None:
            self._count(train_result.last)

    def on_evaluation(self, result: EvaluationResult) -> None:
        """Book a measurement of the present weights."""
        self._log(success_metrics(result))
        if self.num_updates == 0:
            self._before = result
            self._attempt(self._save_before)

    def write_results(self, before: EvaluationResult, after: EvaluationResult, train_result: TrainResult) -> None:
        """Write the results and draw the curve.

        Raises:
            StorageError: The disk does not take them; the message names the file.
        """
        results: dict[str, Any] = {
            "before": before.to_json(),
            "after": after.to_json(),
            "difference": Comparison.of(before, after).to_json(),
            "wall_s": round(self._books.wall_s, 2),
            "env_steps": self._env_steps,
            "num_rollouts": self._num_rollouts,
            "num_updates": self.num_updates,
            "groups_accepted": self._verdicts[Verdict.ACCEPTED],
            "groups_rejected": {str(verdict): self._verdicts[verdict] for verdict in REJECTIONS},
            "ledger": asdict(self._ledger),
            "stopped_early": str(train_result.exhausted) if train_result.exhausted else None,
        }
        self._save_before()
        self._books.flush()
        title = f"{self._experiment.name}, seed {self._experiment.seed}"
        with os_errors_as_storage_error(self._folder.curve):
            plot_curve(self._folder.curve, self._points, before=before.overall, after=after.overall, title=title)
        atomic_write(self._folder.results, json.dumps(results, indent=2) + "\n")  # last: it says that the run has ended
        self._books.log_artifacts([self._folder.results, self._folder.curve])

    def _sums(self) -> dict[str, float]:
        """Metrics that grow over the whole run, through interruptions."""
        return {
            "train/env_steps": self._env_steps,
            "faults/skipped_updates": self._num_skipped,
            "faults/failed_saves": self._num_failed_saves,
            **self._ledger_figures(),
        }

    def _totals(self) -> dict[str, float]:
        """What a later process needs to go on counting."""
        return {
            "env_steps": self._env_steps,
            "num_rollouts": self._num_rollouts,
            "skipped_updates": self._num_skipped,
            "failed_saves": self._num_failed_saves,
            "wall_s": self._books.wall_s,
            **{f"groups/{verdict}": count for verdict, count in self._verdicts.items()},
            **self._ledger_figures(),
        }

    def _ledger_figures(self) -> dict[str, int]:
        return {f"ledger/{name}": count for name, count in asdict(self._ledger).items()}

    def _count(self, stats: RolloutStats) -> None:
        self._env_steps += stats.env_steps
        self._num_rollouts += stats.num_rollouts
        self._verdicts.update(stats.verdicts)

    def _log(self, metrics: dict[str, float]) -> MetricPoint:
        return self._books.log(Stage.RIPT, self.num_updates, metrics, env_steps=self._env_steps)

    def _attempt(self, save: Callable[[], None]) -> None:
        """Save what a later attempt can save as well."""
        try:
            save()
        except StorageError as error:
            self._num_failed_saves += 1
            logger.warning("%s; trying again after the next update", error)

    def _save_before(self) -> None:
        if self._before is not None:
            atomic_write(self._folder.before, json.dumps(self._before.to_json(), indent=2) + "\n")
        self._before = None

    def _save(self, *, resumable: bool) -> None:
        if self._unsaved is None:
            return
        self._save_before()  # a run cannot be resumed without it
        record = self._unsaved
        apply(record.weights, self._policy)
        source = SavedPolicy(self._experiment, self._policy.state_arrays())
        training = TrainingState(record.progress, self._totals(), record.learner_state()) if resumable else None
        folder = self._folder.checkpoint(record.progress.update)
        if not folder.exists():  # it does where an interrupt came between saving and the next line
            checkpoint.save(folder, source, training)
        self._unsaved = None
        self._save_is_due = False


def success_metrics(result: EvaluationResult) -> dict[str, float]:
    """The success rates of a measurement by the names they are compared under."""
    rates = {f"eval/success_rate/{task}": rate.success_rate for task, rate in result.per_task.items()}
    return {"eval/success_rate": result.overall.success_rate, **rates}


def metrics_of(record: UpdateRecord) -> dict[str, float]:
    """The figures of one update by the names they are compared under."""
    stats, report = record.stats, record.report
    return {
        "train/success_rate": stats.success_rate,
        "train/num_rollouts": stats.num_rollouts,
        "train/env_steps_per_s": stats.env_steps / stats.rollout_s,
        "train/record_bytes": stats.record_bytes,
        "train/record_bytes_per_group": stats.record_bytes / max(1, stats.verdicts[Verdict.ACCEPTED]),
        "groups/accepted": stats.verdicts[Verdict.ACCEPTED],
        **{f"groups/{verdict}": stats.verdicts[verdict] for verdict in REJECTIONS},
        **{f"ppo/{name}": value for name, value in asdict(report).items() if name not in ("learn_s", "error")},
        "faults/actors_replaced": record.num_replaced,
        "time/rollout_s": stats.rollout_s,
        "time/learn_s": report.learn_s,
        "time/broadcast_s": record.broadcast_s,
    }
