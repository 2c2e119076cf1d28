"""`ript-ray plan` from the command line."""

import json
from pathlib import Path

import pytest

from experiments.quickstart import EXPERIMENT
from ript_ray.config.serialization import to_json
from tests.commands import ript_ray_here


@pytest.mark.cli
def test_an_experiments_file_is_planned_and_all_figures_are_written(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(to_json(EXPERIMENT))
    command = ("plan", str(tmp_path), "--ppo.micro-batch-decisions", "16", "--cpus", "4", "--out", "plan.json")
    result = ript_ray_here(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for words in ("4 x rollout actor", "a pass, decisions: 16", "a broadcast: 1.50 MB", "what is known of it fits"):
        assert words in result.stdout
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["footprint"]["num_trained"] == 374_408
    assert plan["sizes"]["decisions_per_rollout"] == 19


@pytest.mark.cli
@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "experiments.quickstart --cluster.num-actors 2 --cluster.gpus-per-actor 0.25 --gpu-memory-gib 1 --cpus 4",
            "error: cluster.gpus-per-actor: a rollout actor needs 0.6 GiB of GPU memory, and its share",
        ),
        ("experiments.quest_ml45 paper-autoencoder", "quest-ml45-autoencoder does not post-train"),
        ("experiments.nothing", "experiments.nothing is no run's folder, and as a launcher it cannot be imported"),
        ("json", "json is no launcher: it has neither EXPERIMENT nor PRESETS"),
    ],
)
def test_what_does_not_fit_or_is_no_experiment_is_refused(command: str, message: str, tmp_path: Path) -> None:
    result = ript_ray_here("plan", *command.split(), cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
