"""Runs of one experiment with several settings and seeds: how its trials stand, read from their folders alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ript_ray.config.experiment import Experiment
from ript_ray.errors import CheckpointError, ConfigError
from ript_ray.evaluation.summary import Summary
from ript_ray.runs.overview import RunOverview, RunState, overview
from ript_ray.runs.run_dir import RunDir
from ript_ray.runs.summary import summarize_runs
from ript_ray.storage.jsonl import AppendOnlyLog, parse_lines
from ript_ray.storage.reading import parse_json, read_object
from ript_ray.tracking.metrics_log import read_metrics

SUFFIX = "-sweep"
"""Follows the experiment's name in that of the folder of its sweeps, beside the folder of its runs."""


class TrialState(StrEnum):
    """How a trial stands. All but the first two go on with the sweep."""

    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    WAITING = "waiting"


@dataclass(frozen=True)
class Trial:
    """A run of a sweep.

    Attributes:
        setting: What it has in common with those that differ in their seeds alone, in words.
        label: The end of its run's name.
        experiment: What is learned.
    """

    setting: str
    label: str
    experiment: Experiment

    @property
    def name(self) -> str:
        """Its name, unlike those of all other trials of a sweep."""
        return f"{self.label}-seed{self.experiment.seed}"

    def find_run(self, runs: Path) -> RunDir | None:
        """Return its run, the newest if there are several, in the folder of the runs of all experiments."""
        return RunDir.find(runs, self.experiment, self.label)

    def is_running(self, runs: Path) -> bool:
        """Return whether a process is working on its run, on any machine that shares the folder of the runs."""
        run = self.find_run(runs)
        return run is not None and run.is_running

    def read_progress(self, runs: Path) -> Mapping[int, float]:
        """Return success on the validation contexts by update, but for the last: the trial is about to end then."""
        run = self.find_run(runs)
        points = read_metrics(run.metrics_log) if run else []
        return {
            point.update: point.metrics["validation/success_rate"]
            for point in points
            if point.kind == "validation" and 0 < point.update < self.experiment.num_updates
        }


@dataclass(frozen=True)
class TrialView:
    """How a trial stands.

    Attributes:
        trial: Which.
        state: How.
        detail: Why it has failed, or how far it is.
        run: Its run, once it has begun.
    """

    trial: Trial
    state: TrialState
    detail: str = ""
    run: RunOverview | None = None


class SweepDir:
    """The directory runs/<experiment>-sweep/<label>/ of a sweep; its runs are where all runs are.

    Attributes:
        path: The directory.
        config: The command that began it, and where it was typed.
        ends: One JSON object per trial that was stopped early or has failed.
        logs: Folder of the output of each trial.
        plot: The curves as an image.
    """

    def __init__(self, path: Path):
        """Use the directory at `path`; nothing is created."""
        self.path = path
        self.config = path / "sweep.json"
        self.ends = path / "ends.jsonl"
        self.logs = path / "logs"
        self.plot = path / "curves.png"

    @property
    def runs(self) -> Path:
        """The folder of the runs of all experiments."""
        return self.path.absolute().parent.parent

    @property
    def directory(self) -> Path:
        """Where its command was typed, which the paths in it are relative to; the current directory if it is gone."""
        typed = Path(str(read_object(self.config).get("directory", "")))
        return typed if typed.is_dir() else Path.cwd()

    def record_end(self, name: str, end: str, why: str) -> None:
        """Record how a trial has ended.

        Args:
            name: The trial.
            end: The value of a `TrialState`.
            why: Why, if it has failed.
        """
        log = AppendOnlyLog(self.ends, "ends")
        log.append(json.dumps({"trial": name, "end": end, "why": why}))
        log.flush()  # a full disk must not end the other trials: without the line, this one begins again

    def view(self, trials: Sequence[Trial]) -> list[TrialView]:
        """Return how trials stand."""
        lines, _ = parse_lines(self.ends, lambda line: dict(parse_json(line)))
        ends = {str(line["trial"]): (str(line["end"]), str(line["why"])) for line in lines if "trial" in line}
        return [self._view(trial, *ends.get(trial.name, ("", ""))) for trial in trials]

    def _view(self, trial: Trial, end: str, why: str) -> TrialView:
        found = trial.find_run(self.runs)
        run = overview(found.path)[0] if found else None
        if run and run.state in (RunState.FINISHED, RunState.RUNNING):  # in spite of an earlier end
            return TrialView(trial, TrialState(run.state), run.detail, run)
        if end == TrialState.STOPPED and run:
            return TrialView(trial, TrialState.STOPPED, run.detail, run)
        if end == TrialState.FAILED or (run and run.state in (RunState.FAILED, RunState.DAMAGED)):
            return TrialView(trial, TrialState.FAILED, why or (run.detail if run else ""), run)
        return TrialView(trial, TrialState.INTERRUPTED if run else TrialState.WAITING, run.detail if run else "", run)


@dataclass(frozen=True)
class SettingView:
    """How a setting has fared.

    Attributes:
        setting: Which.
        views: Its trials.
        summary: Of those that have finished, if these are at least two.
    """

    setting: str
    views: Sequence[TrialView]
    summary: Summary | None

    @property
    def finished(self) -> list[RunOverview]:
        """The runs that have finished."""
        return [view.run for view in self.views if view.run and view.state is TrialState.FINISHED]

    @property
    def wall_s(self) -> float:
        """Seconds of all its trials, one after another."""
        return sum(view.run.wall_s for view in self.views if view.run)

    def count(self, state: TrialState) -> int:
        """Return how many of its trials are in a state."""
        return sum(view.state is state for view in self.views)

    @property
    def curves(self) -> list[dict[int, float]]:
        """Success of the training rollouts by update, of each trial that has got so far."""
        return [curve for view in self.views if view.run and (curve := _curve(view.run.folder))]


def by_setting(views: Sequence[TrialView]) -> list[SettingView]:
    """Group trials by their settings, in the order in which these come first."""
    return [
        SettingView(setting, own, _summary(own))
        for setting in dict.fromkeys(view.trial.setting for view in views)
        for own in [[view for view in views if view.trial.setting == setting]]
    ]


def _summary(views: Sequence[TrialView]) -> Summary | None:
    finished = [view.run.folder for view in views if view.run and view.state is TrialState.FINISHED]
    try:
        return summarize_runs(finished) if len(finished) > 1 else None
    except (CheckpointError, ConfigError):  # runs without post-training, or one that another command has changed
        return None


def _curve(run: Path) -> dict[int, float]:
    points = read_metrics(RunDir(run).metrics_log)
    return {point.update: point.metrics["train/success_rate"] for point in points if point.kind == "update"}
