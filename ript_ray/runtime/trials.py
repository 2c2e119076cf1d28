"""Trials of a sweep on a Ray cluster, by Ray Tune: processes that are started, watched and, if need be, stopped.

Tune reserves what a trial needs and chooses which ones to stop. It keeps nothing that a later command reads: how far a
trial has come is in its run's folder. See docs/decisions/0028-sweeps.md.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray._private import ray_constants
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from ript_ray.checks import require
from ript_ray.errors import WorkerError
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.nodes import live_nodes
from ript_ray.runtime.placement import RESERVED
from ript_ray.runtime.ray_session import ray_session

POLL_S = 0.2
ANSWER_S = 1.0
"""How often a trial answers at least: before that, Tune cannot stop it."""

SAVE_TIMEOUT_S = 600.0
"""Longest time that a trial which is stopped may take to save."""

WAIT_SIGN_S = 60.0
"""How often the log says that no trial finds room."""

MAX_LOST = 3
"""How often a trial whose node was lost begins again, each time from its newest checkpoint."""

UPDATE, SUCCESS, EXIT_CODE, ERROR = "update", "success", "exit_code", "error"

SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial answers between two validations, too
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths on the command line are relative to where it was typed
    "RAY_AIR_NEW_OUTPUT": "0",
}

Progress = Mapping[int, float]
"""Success on the validation contexts, by update."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialProcess:
    """What runs as a trial.

    Attributes:
        name: Its name, unlike those of all others.
        command: The program and its arguments. On SIGTERM it saves and ends; when it is started again, it goes on.
        log: The file that its output is appended to.
        read_progress: Reads how far it has come; called where it runs.
        is_running: Whether it works, or saves; called where the sweep runs, which may be another machine.
    """

    name: str
    command: Sequence[str]
    log: Path
    read_progress: Callable[[], Progress]
    is_running: Callable[[], bool]


@dataclass(frozen=True)
class EarlyStopping:
    """Asynchronous successive halving (ASHA, Li et al. 2020).

    Attributes:
        grace_updates: Updates before which no trial is stopped.
        keep_one_in: At each rung, trials go on that are among the best of this fraction; above 1.
        num_updates: Updates of a whole trial.
        past: How trials have fared that ended in an earlier process: others are compared with them, too.
    """

    grace_updates: int
    keep_one_in: float
    num_updates: int
    past: Sequence[Progress] = ()


class TrialEnd(StrEnum):
    """How a trial has ended."""

    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


OnEnd = Callable[[str, TrialEnd, str], None]
"""Takes a trial's name, how it has ended, and why, if it has failed."""


def run_trials(
    trials: Sequence[TrialProcess],
    cluster: Cluster,
    *,
    scratch: Path,
    on_end: OnEnd,
    place: Cluster,
    num_learners: int = 1,
    stopping: EarlyStopping | None = None,
) -> None:
    """Run trials side by side, as many as there are cores for, until all have ended or a signal ends the sweep.

    Args:
        trials: In the order in which they start.
        cluster: What each trial needs.
        scratch: Folder for Tune's own files, on a file system that all nodes share.
        on_end: Called when a trial ends; not for those that a signal ends.
        place: The cluster that all trials share: its address, and how long it may have no room for a single one.
        num_learners: Learners of each trial.
        stopping: When a trial is stopped early, if ever.

    Raises:
        ConfigError: A trial does not fit on this machine.
        WorkerError: No trial has run for `place.node_timeout_s`.
        KeyboardInterrupt: A signal has ended the sweep; the trials have saved.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in SETTINGS.items()})
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what it reports is reported here
    resources = _resources(cluster, num_learners)
    with ray_session(place):
        if place.joined_address is None:  # a cluster may grow
            _require_fit(cluster, num_learners)
        trainable = tune.with_parameters(_Trainable, trials={trial.name: trial for trial in trials})
        reports = _Reports(on_end, resources.required_resources, place.node_timeout_s)
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            param_space={"trial": tune.grid_search([trial.name for trial in trials])},
            tune_config=tune.TuneConfig(scheduler=_scheduler(stopping)),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(scratch.absolute()),
                verbose=0,
                callbacks=[reports],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the run's own are resumed from
                failure_config=tune.FailureConfig(max_failures=MAX_LOST),
            ),
        )
        with _signals_as_sigint():
            tuner.fit()
            _await_saved(trials)
    if reports.num_ended < len(trials):
        raise KeyboardInterrupt


def _await_saved(trials: Sequence[TrialProcess]) -> None:
    """Wait until no trial runs: one that a signal ends may take longer to save than the seconds that Tune waits."""
    deadline, told = time.monotonic() + SAVE_TIMEOUT_S, ""
    while saving := " ".join(trial.name for trial in trials if trial.is_running()):
        if time.monotonic() > deadline:
            logger.warning("not waited for any longer, after %g s: %s", SAVE_TIMEOUT_S, saving)
            return
        if saving != told:
            logger.info("waiting for trials that save: %s", saving)
        told = saving
        time.sleep(POLL_S)


@contextlib.contextmanager
def _signals_as_sigint() -> Iterator[None]:
    """Have SIGTERM and SIGHUP do what SIGINT does until the block ends: Tune then ends all trials."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _resources(cluster: Cluster, num_learners: int) -> tune.PlacementGroupFactory:
    """Return what is reserved for a trial: its own process, or its learners and actors; its driver mostly waits."""
    if cluster.in_process:
        gpus = max(cluster.gpus_per_actor, cluster.learner_gpus)
        return tune.PlacementGroupFactory([{"CPU": max(1, cluster.env_processes), "GPU": gpus}])
    learners = [{"CPU": cluster.learner_cpus, "GPU": cluster.learner_gpus}] * num_learners
    actors = [{"CPU": cluster.cpus_per_actor, "GPU": cluster.gpus_per_actor}] * (cluster.num_actors or 1)
    reserving = learners if cluster.learner_reserves else []  # first: the rank of a learner is its bundle's number
    return tune.PlacementGroupFactory([{}, *reserving, *actors])


def _require_fit(cluster: Cluster, num_learners: int) -> None:
    nodes = live_nodes()
    if not cluster.in_process:
        cluster.count_actors(nodes, num_learners)
        return
    needed = _resources(cluster, num_learners).required_resources
    require(
        any(node.cpus >= needed.get("CPU", 0) and node.gpus >= needed.get("GPU", 0) for node in nodes),
        f"{_need_of_trial(needed)} (cluster.env-processes, cluster.learner-gpus, cluster.gpus-per-actor), which this "
        "machine does not have",
    )


def _need_of_trial(needed: Mapping[str, float]) -> str:
    return f"a trial needs {needed.get('CPU', 0):g} cores and {needed.get('GPU', 0):g} GPUs"


def _scheduler(stopping: EarlyStopping | None) -> TrialScheduler:
    if stopping is None:
        return FIFOScheduler()
    scheduler = ASHAScheduler(
        time_attr=UPDATE,
        metric=SUCCESS,
        mode="max",
        max_t=stopping.num_updates,
        grace_period=stopping.grace_updates,
        reduction_factor=stopping.keep_one_in,
        stop_last_trials=False,  # the last update is followed by the evaluation on the test contexts
    )
    for number, progress in enumerate(stopping.past):
        trial = SimpleNamespace(trial_id=f"past-{number}")
        scheduler.on_trial_add(None, trial)
        for update, success in sorted(progress.items()):
            scheduler.on_trial_result(None, trial, {UPDATE: update, SUCCESS: success})
    return scheduler


class _Trainable(tune.Trainable):  # type: ignore[misc]
    """A trial's process, as Tune sees it: one result per validation, and one at the end."""

    def setup(self, config: dict[str, Any], trials: Mapping[str, TrialProcess]) -> None:
        """Start the process."""
        self._trial = trials[config["trial"]]
        self._last_update = 0
        group = ray.util.get_current_placement_group()
        address = ray.get_runtime_context().gcs_address
        with self._trial.log.open("a") as log:
            self._process = subprocess.Popen(
                [*self._trial.command, str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    "RAY_ADDRESS": address,
                    # Ray of this machine alone listens on loopback; unless told, Ray would look for it elsewhere.
                    **({ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"} if address.startswith("127.") else {}),
                    RESERVED: group.id.hex() if group else "",
                },
                start_new_session=True,  # a Ctrl-C in the terminal is the sweep's business
            )

    def step(self) -> dict[str, Any]:
        """Wait for the next validation, for the end, or for a moment."""
        deadline = time.monotonic() + ANSWER_S
        while True:
            code = self._process.poll()  # first: what it wrote before it ended is then read, too
            progress = self._trial.read_progress()
            if later := sorted(update for update in progress if update > self._last_update):
                self._last_update = later[0]
                return {UPDATE: later[0], SUCCESS: progress[later[0]]}
            if code is not None:
                return {"done": True, EXIT_CODE: code, ERROR: self._error(code)}
            if time.monotonic() > deadline:
                return {}
            time.sleep(POLL_S)

    def cleanup(self) -> None:
        """Have the process save and end, if it is running."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(SAVE_TIMEOUT_S)

    def _error(self, code: int) -> str:
        """The last error in the log, in one line."""
        if code == 0:
            return ""
        lines = self._trial.log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return errors[-1].removeprefix("error: ") if errors else (lines[-1:] or [f"exit code {code}"])[0]


class _Reports(tune.Callback):  # type: ignore[misc]
    """Logs how trials fare, and how long none has found room."""

    def __init__(self, on_end: OnEnd, needed: Mapping[str, float], timeout_s: float):
        self.num_ended = 0
        self._on_end = on_end
        self._needed = needed
        self._timeout_s = timeout_s
        self._idle_since = self._last_sign = time.monotonic()

    def on_step_begin(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
        """Raises WorkerError where no trial has run for too long."""
        now = time.monotonic()
        if any(trial.status == Trial.RUNNING for trial in trials):
            self._idle_since = self._last_sign = now
        elif now - self._last_sign > WAIT_SIGN_S:
            self._last_sign, nodes = now, live_nodes()
            cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
            room = f"the nodes have {cpus:g} cores and {gpus} GPUs"
            waited = f"no trial has found room for {now - self._idle_since:.0f} s"
            text = f"{waited}: {_need_of_trial(self._needed)}, {room}, some of them in use"
            if now - self._idle_since > self._timeout_s:
                raise WorkerError(f"{text}; the limit is {self._timeout_s:g} s (cluster.node-timeout-s)")
            logger.warning("%s; waiting for at most %g s (cluster.node-timeout-s)", text, self._timeout_s)

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        logger.info("%s has started", trial.config["trial"])

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        if SUCCESS in result:
            success = f"{100 * result[SUCCESS]:.1f}%"
            logger.info(
                "%s: success %s on validation contexts after update %d", trial.config["trial"], success, result[UPDATE]
            )

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        result = trial.last_result
        if EXIT_CODE not in result:
            self._end(trial, TrialEnd.STOPPED)
        elif result[EXIT_CODE] == 0:
            self._end(trial, TrialEnd.FINISHED)
        else:
            self._end(trial, TrialEnd.FAILED, result[ERROR])

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._end(trial, TrialEnd.FAILED, f"its process or its machine was lost {MAX_LOST + 1} times")

    def _end(self, trial: Any, end: TrialEnd, why: str = "") -> None:
        self.num_ended += 1
        level = logging.WARNING if end is TrialEnd.FAILED else logging.INFO
        logger.log(level, "%s has %s%s", trial.config["trial"], end, f": {why}" if why else "")
        self._on_end(trial.config["trial"], end, why)
