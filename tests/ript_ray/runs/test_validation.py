"""Evaluation during training: changes no weight, is made once per update through interruptions, marks the best."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.extending import EXPERIMENT as EXAMPLE
from ript_ray.api import EvaluationOverrides, evaluate
from ript_ray.config.rl import Evaluation
from ript_ray.errors import CheckpointError
from ript_ray.pipeline import resume_experiment, run_experiment
from ript_ray.rl.callbacks import RolloutStats, UpdateRecord
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.runs import checkpoint
from ript_ray.runs.recorder import best_of
from ript_ray.runtime.cluster import Cluster
from ript_ray.seeding import Split
from ript_ray.tracking.console import View
from ript_ray.tracking.logs import ViewMode
from ript_ray.tracking.metrics_log import read_metrics
from ript_ray.types import GroupSummary
from tests.commands import only_folder
from tests.tracked import only_run

EXPERIMENT = replace(
    EXAMPLE,
    num_updates=5,
    checkpoint_every=10,
    sampling=replace(EXAMPLE.sampling, batch_rollouts=16),
    evaluation=Evaluation(contexts_per_task=4, validation_contexts_per_task=20, every=2),
)
HERE = Cluster(in_process=True)
LAST = Path("checkpoints") / "update-00005"

pytestmark = pytest.mark.usefixtures("store")


class Quiet(View):
    def __init__(self) -> None:
        super().__init__(ViewMode.QUIET, 5)


class StopBefore(Quiet):
    """Interrupts the run after update 4 is saved, before it is evaluated."""

    def on_update(self, record: UpdateRecord) -> None:
        if record.stats.update == 4:
            raise KeyboardInterrupt


class StopAfter(Quiet):
    """Interrupts the run after the evaluation of update 4."""

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        if stats.update == 5:
            raise KeyboardInterrupt


def run(home: Path, view: View, **evaluation: Any) -> Path:
    experiment = replace(EXPERIMENT, evaluation=replace(EXPERIMENT.evaluation, **evaluation))
    run_experiment(experiment, HERE, runs=home, view=view)
    return only_folder(home / "extending")


def validated(folder: Path) -> list[tuple[int, float]]:
    points = [point for point in read_metrics(folder / "metrics.jsonl") if point.kind == "validation"]
    return [(point.update, point.metrics["validation/success_rate"]) for point in points]


def weights(folder: Path) -> list[bytes]:
    return [(folder / LAST / name).read_bytes() for name in ("policy.safetensors", "learner.safetensors")]


def test_a_run_is_evaluated_every_second_update_and_keeps_its_best_checkpoint(store: str, tmp_path: Path) -> None:
    folder = run(tmp_path / "with", Quiet())
    rates = dict(validated(folder))
    assert list(rates) == [0, 2, 4, 5]
    best = best_of(rates)
    assert rates[best] == max(rates.values())
    assert (folder / "checkpoints" / "best").resolve() == (folder / "checkpoints" / f"update-{best:05d}").resolve()
    assert json.loads((folder / "results.json").read_text())["best"] == {"update": best, "success_rate": rates[best]}
    again = evaluate(folder / "checkpoints" / "best", EvaluationOverrides(split=Split.VALIDATION), cluster=HERE)
    assert again.overall.success_rate == rates[best]
    metrics = only_run(store, "extending").data.metrics
    assert metrics["validation/success_rate"] == rates[5]
    assert metrics["validation/best_update"] == best

    without = run(tmp_path / "without", Quiet(), every=None)
    assert weights(without) == weights(folder), "evaluating changed training"
    assert validated(without) == []
    with pytest.raises(CheckpointError, match="there is nothing at"):
        checkpoint.find(without / "checkpoints" / "best")


@pytest.mark.parametrize("view", [StopBefore, StopAfter])
def test_an_interrupted_run_repeats_no_evaluation_and_loses_none(view: type[Quiet], tmp_path: Path) -> None:
    undisturbed = run(tmp_path / "undisturbed", Quiet())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", view())
    stopped = only_folder(tmp_path / "stopped" / "extending")
    assert [update for update, _ in validated(stopped)] == [0, 2, 4][: 2 if view is StopBefore else 3]
    resume_experiment(stopped, HERE, view_of=lambda _: Quiet())
    assert validated(stopped) == validated(undisturbed)
    assert weights(stopped) == weights(undisturbed)
    assert (stopped / "checkpoints" / "best").readlink() == (undisturbed / "checkpoints" / "best").readlink()


def test_the_earliest_of_equally_good_updates_is_the_best() -> None:
    assert best_of({0: 0.1, 2: 0.7, 4: 0.7, 6: 0.5}) == 2
