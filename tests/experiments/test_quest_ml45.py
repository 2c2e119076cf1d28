"""The published QueST on ML45: both presets, and their launcher as a command."""

import json
import sys
from pathlib import Path

import pytest
import torch

from experiments.quest_ml45 import (
    ALL_STAGES,
    PAPER,
    PRESETS,
    RELEASED_CODE,
    SINGLE_STAGES,
    differences,
    print_differences,
)
from ript_envs.metaworld.tasks import ML45_HELD_OUT
from ript_ray.config.experiment import Experiment
from ript_ray.rl.learner import learning_rate_of
from ript_ray.runs.saved_policy import SavedPolicy
from tests.commands import RIPT_RAY, run

QUEST_ML45 = (sys.executable, "-m", "experiments.quest_ml45")
SMALL = (
    *("--tasks", "faucet-open-v3", "--policy.cameras", "--policy.prior-width", "24", "--policy.prior-layers", "1"),
    *("--policy.skill-width", "16", "--policy.skill-layers", "1", "1", "--max-steps", "100"),
    *("--demos.num-per-task", "1", "--evaluation.contexts-per-task", "2", "--cluster.in-process"),
)


def test_the_printed_table_lists_every_difference_between_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    differing = {name: (paper, code) for name, paper, code in differences()}
    assert differing["sampling.group_size"] == (16, 8)
    assert differing["sampling.batch_rollouts"] == (2880, 1152)
    assert differing["ppo.minibatch_rollouts"] == (24, 6)
    assert differing["ppo.final_learning_rate"] == (None, 9e-7)
    assert differing["evaluation.contexts_per_task"] == (50, 48)
    assert "ppo.num_iterations" not in differing
    print_differences()
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(differing)


def test_the_released_codes_learning_rate_changes_every_other_update() -> None:
    rates = [learning_rate_of(RELEASED_CODE.ppo, update) for update in range(1, 31)]
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-6)
    upstream = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=9e-7)
    for update, rate in enumerate(rates, start=1):
        assert rate == pytest.approx(upstream.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if update % 2 == 0:
            upstream.step()
    assert {learning_rate_of(PAPER.ppo, update) for update in range(1, 31)} == {1e-6}


@pytest.mark.parametrize("experiment", ALL_STAGES.values(), ids=ALL_STAGES)
def test_a_preset_trains_the_published_policy_on_45_tasks(experiment: Experiment) -> None:
    assert len(experiment.tasks) == 45
    assert not set(experiment.tasks) & set(ML45_HELD_OUT)
    policy = SavedPolicy.initial(experiment).build()
    assert isinstance(policy, torch.nn.Module)
    assert sum(value.numel() for value in policy.parameters()) == 18_871_600


def test_every_stage_has_a_run_of_its_own_under_its_own_name() -> None:
    assert [(name, preset.name, preset.stages) for name, preset in SINGLE_STAGES.items()] == [
        (f"{version}-{stage}", f"quest-ml45-{stage}", (stage,))
        for version in ("paper", "released-code")
        for stage in ("autoencoder", "prior", "ript")
    ]
    for preset in ALL_STAGES.values():
        assert (preset.name, preset.stages) == ("quest-ml45", ("autoencoder", "prior", "ript"))
    assert len(PRESETS) == 8


@pytest.mark.cli
@pytest.mark.sim
def test_a_stage_runs_from_the_command_line_with_any_field_changed(tmp_path: Path) -> None:
    options = ("released-code-autoencoder", *SMALL, "--sft.autoencoder.num-epochs", "2", "--view", "lines")
    result = run(*QUEST_ML45, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "autoencoder: step" in result.stdout
    (folder,) = (tmp_path / "runs" / "quest-ml45-autoencoder").iterdir()
    config = json.loads((folder / "config.json").read_text())
    assert (config["ppo"]["minibatch_rollouts"], config["stages"]) == (6, ["autoencoder"])
    assert "nothing to resume" in run(*RIPT_RAY, "resume", str(folder), cwd=tmp_path).stderr


@pytest.mark.cli
@pytest.mark.parametrize("options", [("paper-prior",), ("paper", "--stages", "prior")], ids=" ".join)
def test_a_stage_without_a_start_says_what_it_needs(options: tuple[str, ...], tmp_path: Path) -> None:
    result = run(*QUEST_ML45, *options, cwd=tmp_path)
    assert result.returncode == 2
    assert "start-from must name what the stage prior starts from" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.cli
def test_the_differences_are_a_command(tmp_path: Path) -> None:
    result = run(*QUEST_ML45, "differences", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "sampling.group_size" in result.stdout
