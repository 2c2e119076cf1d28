"""A run is extended, also after it has finished, and resumed with other versions than it began with."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.extending import EXPERIMENT as EXAMPLE
from experiments.extending import LaplaceSFT
from ript_ray.config.experiment import Experiment
from ript_ray.errors import CheckpointError, ConfigError
from ript_ray.pipeline import resume_experiment, run_experiment
from ript_ray.policies.supervised import SupervisedStage
from ript_ray.rl.callbacks import RolloutStats
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.runs.rollout_log import read_groups
from ript_ray.runs.run_dir import DEMONSTRATIONS
from ript_ray.runtime.cluster import Cluster
from ript_ray.tracking.console import View
from ript_ray.tracking.logs import ViewMode
from ript_ray.tracking.metrics_log import read_metrics
from ript_ray.types import GroupSummary
from tests.commands import only_folder
from tests.tracked import only_run

EXPERIMENT = replace(
    EXAMPLE,
    num_updates=2,
    sft=LaplaceSFT(SupervisedStage(num_steps=60, learning_rate=3e-3)),
    sampling=replace(EXAMPLE.sampling, batch_rollouts=16),
    evaluation=replace(EXAMPLE.evaluation, contexts_per_task=10),
)
IN_PROCESS = Cluster(in_process=True)


class Stop(View):
    """Interrupts the run in update `update`."""

    def __init__(self, update: int):
        super().__init__(ViewMode.QUIET, 4)
        self._update = update

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        if stats.update == self._update:
            raise KeyboardInterrupt


def run(experiment: Experiment, home: Path) -> Path:
    return run_experiment(experiment, IN_PROCESS, runs=home, view=Stop(0)).folder


def resume(folder: Path, *, stop: int = 0, **options) -> None:
    resume_experiment(folder, IN_PROCESS, view_of=lambda _: Stop(stop), **options)


def end_of(folder: Path) -> list[bytes]:
    last = folder / "checkpoints" / "update-00004"
    return [(last / name).read_bytes() for name in ("policy.safetensors", "learner.safetensors")]


def results_of(folder: Path) -> dict:
    results = json.loads((folder / "results.json").read_text())
    return {name: value for name, value in results.items() if name not in ("wall_s", "core_s")}


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_a_finished_run_extended_to_twice_its_updates_equals_one_that_had_them_from_the_start(
    is_interrupted: bool, store: str, tmp_path: Path
) -> None:
    whole = run(replace(EXPERIMENT, num_updates=4), tmp_path / "whole")
    folder = run(replace(EXPERIMENT, name="short"), tmp_path)
    first_end = (folder / "results.json").read_bytes()
    if is_interrupted:
        with pytest.raises(KeyboardInterrupt):
            resume(folder, stop=3, num_updates=4)
        resume(folder)
    else:
        resume(folder, num_updates=4)
    assert end_of(folder) == end_of(whole)
    assert results_of(folder) == results_of(whole)
    assert (folder / "results-00002.json").read_bytes() == first_end
    assert read_groups(folder / "groups.jsonl") == read_groups(whole / "groups.jsonl")
    updates = [(point.update, point.kind) for point in read_metrics(folder / "metrics.jsonl") if point.stage == "ript"]
    assert updates == [
        (0, "evaluation"),
        (1, "update"),
        (2, "update"),
        (2, "evaluation"),
        (3, "update"),
        (4, "update"),
        (4, "evaluation"),
    ]
    stored = only_run(store, "short")
    assert (stored.info.status, stored.data.tags["num_updates"]) == ("FINISHED", "4")


@pytest.mark.usefixtures("store")
def test_a_run_that_cannot_be_extended_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    folder = run(EXPERIMENT, tmp_path)
    with pytest.raises(CheckpointError, match="has finished: there is nothing to resume; num-updates extends it"):
        resume(folder)
    with pytest.raises(ConfigError, match="num-updates must be more than the 2 updates that the run has, not 2"):
        resume(folder, num_updates=2)
    supervised = run(replace(EXPERIMENT, name="supervised", stages=("regression",)), tmp_path)
    with pytest.raises(ConfigError, match="num-updates: supervised does not post-train"):
        resume(supervised, num_updates=5)
    assert (folder / "results.json").exists()
    assert (supervised / "results.json").exists()
    assert not (folder / "resumed.jsonl").exists()


def test_a_run_resumed_with_other_versions_warns_and_records_both_and_strictly_refuses(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_experiment(EXPERIMENT, IN_PROCESS, runs=tmp_path, view=Stop(2))
    folder = only_folder(tmp_path / "extending")
    path = folder / "versions.json"
    began_with = json.loads(path.read_text())
    assert {"commit", "sources_sha256", "torch", "python", "processor", "instructions"} <= began_with.keys()
    others = began_with | {"torch": "1.0", "processor": "an abacus", "gone": "2.0"}
    path.write_text(json.dumps(others))
    processor, torch_version = began_with["processor"], began_with["torch"]
    expected = f"processor an abacus (now {processor}), torch 1.0 (now {torch_version})"
    with pytest.raises(ConfigError) as caught:
        resume(folder, strict=True)
    assert expected in str(caught.value)
    caplog.set_level(logging.WARNING, "ript_ray")
    resume(folder)
    assert [text for text in caplog.messages if expected in text and "changed since the run began" in text]
    (line,) = (json.loads(line) for line in (folder / "resumed.jsonl").read_text().splitlines())
    now = {name: value for name, value in began_with.items() if name != DEMONSTRATIONS}
    assert (line["from"], line["versions"]) == ("update-00001", now)
    assert json.loads(path.read_text()) == others
    tags = only_run(store, "extending").data.tags
    assert (tags["resumed.processor"], tags["resumed.torch"]) == (processor, torch_version)
    assert "resumed.python" not in tags


@pytest.mark.usefixtures("store")
def test_a_run_resumed_with_the_same_versions_is_silent_even_strictly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_experiment(EXPERIMENT, IN_PROCESS, runs=tmp_path, view=Stop(2))
    folder = only_folder(tmp_path / "extending")
    resume(folder, strict=True)
    assert "changed since" not in caplog.text
