"""A sweep in MLflow: a run of its own, which its trials are shown below."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping

from ript_ray.runs.sweep import SweepDir
from ript_ray.tracking.mlflow_run import Identity, MlflowRun
from ript_ray.tracking.store import Origin, without_password
from ript_ray.tracking.tracker import RunStatus

logger = logging.getLogger(__name__)


def store_of(sweep: SweepDir, experiment: str) -> str | None:
    """Return the MLflow store of a sweep's trials, or None if they are not tracked there."""
    origin = Origin.read(sweep.path)
    return origin.store(sweep.runs / experiment / "any", experiment) if "mlflow" in origin.trackers else None


@contextlib.contextmanager
def tracked_sweep(sweep: SweepDir, experiment: str, params: Mapping[str, str]) -> Iterator[None]:
    """Open the sweep's run in MLflow, and end it with its plot when the block ends.

    A store that does not answer costs no more than the nesting: trials that begin meanwhile stand beside each other.

    Args:
        sweep: The sweep; its `tracking.json` holds the run's id.
        experiment: Name of the experiment.
        params: What it is over.
    """
    store, run_id = store_of(sweep, experiment), Origin.read(sweep.path).sweep
    runs: list[MlflowRun] = []

    def attempt(call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # boundary: a tracking error must never end a sweep
            reason = f"{type(error).__name__}: {error}".split("\n", 1)[0]
            logger.warning("tracking: MLflow, %s, does not show the sweep: %s", without_password(store or ""), reason)

    def begin() -> None:
        tags = {"folder": str(sweep.path.absolute())}
        identity = Identity(run_id or "", experiment, f"sweep {sweep.path.name}", dict(params), tags)
        runs.append(MlflowRun(identity, store or ""))
        runs[0].mark_running()

    def end(status: RunStatus) -> None:
        for run in runs:
            run.end(status)
            run.log_files([path for path in (sweep.config, sweep.plot) if path.exists()])

    if store and run_id:
        attempt(begin)
    status = RunStatus.FAILED
    try:
        yield
        status = RunStatus.FINISHED
    except KeyboardInterrupt:
        status = RunStatus.KILLED
        raise
    finally:
        attempt(lambda: end(status))
