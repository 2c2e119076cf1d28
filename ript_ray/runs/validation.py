"""Evaluation during post-training: the curve on the validation contexts, and the best checkpoint."""

import logging
import time

from ript_ray.config.experiment import Experiment
from ript_ray.data.contexts import held_out_requests
from ript_ray.evaluation.evaluate import evaluate
from ript_ray.rl.callbacks import RolloutStats, UpdateRecord
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.protocols import Runtime
from ript_ray.runs.recorder import Recorder, success_metrics
from ript_ray.seeding import Split
from ript_ray.types import GroupSummary

logger = logging.getLogger(__name__)


class Validation:
    """Training callback that evaluates every `evaluation.every` updates, on the actors that training uses.

    It comes after the callback that logs and saves the update. At lag 0 the actors have nothing else to do then, and
    training goes on as if nothing had been: the same weights, bit for bit. Each update is evaluated once, through
    interruptions, too: what the metrics log holds is not repeated, and what it lacks is made up for.
    """

    def __init__(self, runtime: Runtime, recorder: Recorder, experiment: Experiment):
        """Start from what the metrics log holds.

        Args:
            runtime: Its actors hold the weights of the present update whenever this is called.
            recorder: Logs the evaluations and saves checkpoints.
            experiment: What is learned.
        """
        self._runtime = runtime
        self._recorder = recorder
        self._every = experiment.evaluation.every
        self._requests = held_out_requests(experiment, Split.VALIDATION) if self._every else []

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        """Do nothing: weights change when an update ends."""

    def on_update(self, record: UpdateRecord) -> None:
        """Evaluate the new weights, if it is their turn."""
        self.run()

    def run(self, *, at_end: bool = False) -> None:
        """Evaluate the present weights, if it is their turn and they have not been yet.

        Args:
            at_end: Whether these are the last weights, which are always evaluated.

        Raises:
            WorkerError: A rollout failed.
        """
        update = self._recorder.num_updates
        is_due = at_end or (self._every and update % self._every == 0)
        if not self._every or not is_due or update in self._recorder.validated:
            return
        started = time.perf_counter()
        result = evaluate(self._runtime, self._requests)
        metrics = success_metrics(result, Split.VALIDATION)
        best = self._recorder.on_validation({**metrics, "time/validation_s": time.perf_counter() - started})
        rate = f"{100 * result.overall.success_rate:.1f}%"
        logger.info("success %s on validation contexts after update %d; best: update %d", rate, update, best)
