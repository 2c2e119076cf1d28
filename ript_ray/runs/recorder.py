"""The callback that saves post-training: metrics, checkpoints, and at the end the results."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any, Self

from ript_ray.config.serialization import SCHEMA
from ript_ray.errors import CheckpointError, StorageError
from ript_ray.evaluation.comparison import Comparison
from ript_ray.evaluation.evaluate import EvaluationResult
from ript_ray.rl.callbacks import RolloutStats, TrainResult, UpdateRecord
from ript_ray.rl.dynamic_sampling import REJECTIONS, Verdict, trained_verdicts
from ript_ray.rl.learner import learning_rate_of
from ript_ray.rl.ledger import Ledger, carry_over
from ript_ray.runs import checkpoint
from ript_ray.runs.checkpoint import CheckpointClock, RunTotals, TrainingState
from ript_ray.runs.metrics import IdleTime, TaskCounts, memory_metrics, rate_metrics, result_metrics
from ript_ray.runs.model_card import model_card
from ript_ray.runs.retention import prune_checkpoints
from ript_ray.runs.run_logger import RunLogger
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.seeding import Split
from ript_ray.storage.atomic import atomic_symlink, atomic_write, os_errors_as_storage_error
from ript_ray.tracking.metrics_log import MetricPoint, PointKind
from ript_ray.tracking.plot import plot_curve
from ript_ray.types import RIPT, Arrays, GroupSummary, Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Unsaved:
    """The last finished update, the learner's state and the run's totals after it."""

    record: UpdateRecord
    learner_state: Arrays
    totals: RunTotals


class Recorder:
    """Writes everything to the run's directory; metrics go to the trackers as well.

    A context manager: however the block ends, the last finished update is saved with all that resuming needs. Therefore
    the learner's state is fetched after every update (twice the size of the trainable weights): at the end the learner
    may be gone, or in the middle of the next update. A full disk does not end the run: writing is retried after every
    update. At the end it must work.
    """

    def __init__(
        self,
        run_logger: RunLogger,
        policy: SavedPolicy,
        state: TrainingState | None = None,
        *,
        task_of: Callable[[int], str],
        clock: CheckpointClock | None = None,
    ):
        """Save the policy that training starts from.

        Args:
            run_logger: The run.
            policy: The policy that training starts from; saved as the checkpoint of update 0.
            state: Where an earlier process stopped; `policy` is then the policy of that moment.
            task_of: The task of a group, by its index.
            clock: Tells when a checkpoint is due that `checkpoint_every` does not ask for.

        Raises:
            StorageError: The first checkpoint cannot be written.
        """
        self.num_updates = state.progress.update if state else 0
        self._run_logger = run_logger
        self._experiment = policy.experiment
        self._folder = run_logger.folder
        self._policy = policy
        self._totals = state.totals if state else RunTotals()
        self._earlier_ledger = self._totals.ledger
        self._earlier_core_s = self._totals.core_s - time.process_time()  # of this process: what comes from now on
        self._task_counts = TaskCounts(task_of)
        self._idle_time = IdleTime()
        self._totals = replace(self._totals, ledger=carry_over(self._earlier_ledger, Ledger()))
        self._unsaved: _Unsaved | None = None
        self._save_is_due = False
        self._clock = clock or CheckpointClock()
        self._before: EvaluationResult | None = None
        self._points = [point for point in run_logger.restored_points if point.kind in ("update", "validation")]
        if state is None:
            checkpoint.save(
                self._folder.checkpoint(0),
                policy,
                TrainingState(Progress(), replace(self._totals, wall_s=run_logger.wall_s)),
            )
        self._mark_best()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._save()
        except (CheckpointError, StorageError):
            if kind is None:
                raise
            # Otherwise the error that ends the run says more than this one.

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        """Count the group for its task; all is written when the update ends."""
        self._task_counts.add(stats.update, summary, is_accepted=verdict is Verdict.ACCEPTED)

    def on_update(self, record: UpdateRecord) -> None:
        """Log a finished update, and save a checkpoint if one is due.

        Raises:
            CheckpointError: A weight is not finite.
            WorkerError: The learner died after the update.
        """
        learner_state = record.learner_state()
        self._count(record.stats)
        self.num_updates = record.stats.update
        totals = self._totals
        self._totals = replace(
            totals,
            ledger=carry_over(self._earlier_ledger, record.ledger),
            skipped_updates=totals.skipped_updates + (record.report.error is not None),
            core_s=self._earlier_core_s + record.usage.cpu_s,
        )
        self._unsaved = _Unsaved(record, learner_state, self._totals)  # at once: an interrupt may come anywhere
        if record.report.error:
            logger.warning("update %d was skipped: %s", self.num_updates, record.report.error)
        metrics = metrics_of(record) | memory_metrics(record.usage) | self._idle_time.take(record.usage)
        metrics |= self._task_counts.take(self.num_updates)
        metrics["ppo/learning_rate"] = learning_rate_of(self._experiment.ppo, self.num_updates)
        self._points.append(self._log(metrics | self._sums(), "update"))
        self._save_is_due |= self._clock.is_due or self.num_updates % self._experiment.checkpoint_every == 0
        if self._save_is_due:
            self._attempt(self._save)

    def on_end(self, result: TrainResult) -> None:
        """Count the rollouts of an update that never came about, and save the last weights.

        Raises:
            StorageError: They cannot be written; the message names the checkpoint.
        """
        self._save()  # before counting rollouts that a resumed run would do again
        self._totals = replace(self._totals, ledger=carry_over(self._earlier_ledger, result.ledger))
        if result.last is not None:
            self._count(result.last)

    def on_evaluation(self, result: EvaluationResult, before: EvaluationResult | None = None) -> None:
        """Log an evaluation of the present weights; after training also what has changed since the one `before`."""
        metrics = success_metrics(result)
        if before is None:
            metrics |= rate_metrics("result/before", result.overall)  # a series of its own: the other ends with "after"
        else:
            metrics |= result_metrics(before, result, self._totals)
        self._log(metrics, "evaluation")
        if self.num_updates == 0:
            self._before = result
            self._attempt(self._save_before)

    @property
    def validated(self) -> dict[int, float]:
        """Success on the validation contexts after the updates that were evaluated on them, oldest first."""
        rate = f"{Split.VALIDATION}/success_rate"
        return {point.update: point.metrics[rate] for point in self._points if point.kind == "validation"}

    def on_validation(self, metrics: dict[str, float]) -> int:
        """Log an evaluation of the present weights on the validation contexts; keep them if they are the best.

        Returns:
            The best update so far, the earliest one of equals.
        """
        rates = {**self.validated, self.num_updates: metrics[f"{Split.VALIDATION}/success_rate"]}
        best = best_of(rates)
        if best == self.num_updates:
            self._attempt(self._save)
        self._points.append(self._log({**metrics, f"{Split.VALIDATION}/best_update": best}, "validation"))
        self._attempt(self._mark_best)
        return best

    def write_results(self, before: EvaluationResult, after: EvaluationResult, result: TrainResult) -> None:
        """Write the results and draw the curve.

        Raises:
            StorageError: They cannot be written; the message names the file.
        """
        totals = self._totals
        trained = trained_verdicts(dynamic=self._experiment.sampling.dynamic)
        results: dict[str, Any] = {
            "schema": SCHEMA,
            "before": before.to_json(),
            "after": after.to_json(),
            "difference": Comparison.of(before, after).to_json(),
            "wall_s": round(self._run_logger.wall_s, 2),
            "env_steps": totals.env_steps,
            "num_rollouts": totals.num_rollouts,
            "core_s": round(totals.core_s, 2),
            "num_updates": self.num_updates,
            "groups_accepted": sum(totals.groups.get(verdict, 0) for verdict in trained),
            "groups_rejected": {
                str(verdict): 0 if verdict in trained else totals.groups.get(verdict, 0) for verdict in REJECTIONS
            },
            "ledger": asdict(totals.ledger),
            "best": self._best(),
            "stopped_early": str(result.exhausted) if result.exhausted else None,
            "demonstrations": self._folder.demonstrations,
        }
        self._save_before()
        prune_checkpoints(self._folder, self._experiment.keep_checkpoints)  # another may have become the best one
        self._run_logger.flush()
        title = f"{self._experiment.name}, seed {self._experiment.seed}"
        with os_errors_as_storage_error(self._folder.curve):
            plot_curve(self._folder.curve, self._points, before=before.overall, after=after.overall, title=title)
        atomic_write(
            self._folder.model_card,
            model_card(
                self._policy,
                num_updates=self.num_updates,
                before=before,
                after=after,
                versions=self._folder.versions,
            ),
        )
        atomic_write(self._folder.results, json.dumps(results, indent=2) + "\n")  # last: it says that the run has ended

    def _best(self) -> dict[str, float] | None:
        rates = self.validated
        return {"update": best_of(rates), "success_rate": max(rates.values())} if rates else None

    def _mark_best(self) -> None:
        """Have checkpoints/best lead to the best checkpoint, if it could be saved."""
        link = self._folder.best
        target = self._folder.checkpoint(best_of(self.validated)) if self.validated else None
        with os_errors_as_storage_error(link):
            if target is not None and target.exists():
                atomic_symlink(link, target.name)
            elif link.is_symlink():
                link.unlink()

    def _sums(self) -> dict[str, float]:
        """Metrics that accumulate over the whole run, through interruptions."""
        totals = self._totals
        return {
            "train/env_steps": totals.env_steps,
            "train/core_s": totals.core_s,
            "faults/skipped_updates": totals.skipped_updates,
            "faults/failed_saves": totals.failed_saves,
            **{f"ledger/{name}": count for name, count in asdict(totals.ledger).items()},
        }

    def _count(self, stats: RolloutStats) -> None:
        totals = self._totals
        self._totals = replace(
            totals,
            env_steps=totals.env_steps + stats.env_steps,
            num_rollouts=totals.num_rollouts + stats.num_rollouts,
            groups=dict(Counter(totals.groups) + Counter({str(name): count for name, count in stats.verdicts.items()})),
        )

    def _log(self, metrics: dict[str, float], kind: PointKind) -> MetricPoint:
        return self._run_logger.log(RIPT, self.num_updates, metrics, kind=kind, env_steps=self._totals.env_steps)

    def _attempt(self, save: Callable[[], None]) -> None:
        """Save what a later attempt can save as well."""
        try:
            save()
        except StorageError as error:
            self._totals = replace(self._totals, failed_saves=self._totals.failed_saves + 1)
            logger.warning("%s; retrying after the next update", error)

    def _save_before(self) -> None:
        if self._before is not None:
            content = {"schema": SCHEMA, **self._before.to_json()}
            atomic_write(self._folder.before, json.dumps(content, indent=2) + "\n")
        self._before = None

    def _save(self) -> None:
        if self._unsaved is None:
            return
        self._save_before()  # a run cannot be resumed without it
        record, totals = self._unsaved.record, self._unsaved.totals
        policy = self._policy.with_weights(record.weights)
        totals = replace(totals, wall_s=self._run_logger.wall_s, failed_saves=self._totals.failed_saves)
        state = TrainingState(record.progress, totals, self._unsaved.learner_state)
        folder = self._folder.checkpoint(record.progress.update)
        if not folder.exists():  # it does if an interrupt came between saving and the next line
            checkpoint.save(folder, policy, state)
        prune_checkpoints(self._folder, self._experiment.keep_checkpoints)
        self._unsaved = None
        self._save_is_due = False
        self._clock.restart()


def best_of(rates: dict[int, float]) -> int:
    """The update with the highest success rate, the earliest one of equals."""
    return max(sorted(rates), key=rates.__getitem__)


def success_metrics(result: EvaluationResult, split: Split = Split.TEST) -> dict[str, float]:
    """The success rates of an evaluation, overall with its interval, by the names they are compared under."""
    name = "eval/success_rate" if split is Split.TEST else f"{split}/success_rate"
    rates = {f"{name}/{task}": rate.success_rate for task, rate in result.per_task.items()}
    return rate_metrics(name, result.overall) | rates


def metrics_of(record: UpdateRecord) -> dict[str, float]:
    """The figures of one update by the names they are compared under."""
    stats, report = record.stats, record.report
    return {
        "train/success_rate": stats.success_rate,
        "train/num_rollouts": stats.num_rollouts,
        "train/env_steps_per_s": stats.env_steps / stats.rollout_s,
        "train/record_bytes": stats.record_bytes,
        "train/record_bytes_per_group": stats.record_bytes / max(1, stats.num_collected),
        "train/uniform_groups": stats.num_uniform_trained,
        "groups/accepted": stats.verdicts[Verdict.ACCEPTED],
        **{f"groups/{verdict}": stats.verdicts[verdict] for verdict in REJECTIONS},
        **{f"ppo/{name}": value for name, value in asdict(report).items() if name not in ("learn_s", "error")},
        "faults/actors_replaced": record.num_replaced,
        "time/rollout_s": stats.rollout_s,
        "time/learn_s": report.learn_s,
        "time/broadcast_s": record.broadcast_s,
    }
