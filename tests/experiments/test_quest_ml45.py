"""The published QueST on ML45: both presets, and their launchers as commands."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from ript_envs.metaworld.tasks import ML45_HELD_OUT
from ript_ray.runs.saved_policy import new_policy
from tests.commands import RIPT_RAY, ROOT, run

FOLDER = ROOT / "experiments" / "quest_ml45"
SMALL = (
    *("--tasks", "faucet-open-v3", "--policy.cameras", "--policy.prior-width", "24", "--policy.prior-layers", "1"),
    *("--policy.skill-width", "16", "--policy.skill-layers", "1", "1", "--max-steps", "100"),
    *("--demos.num-per-task", "1", "--evaluation.contexts-per-task", "2", "--cluster.in-process"),
)


def presets() -> dict[str, object]:
    return runpy.run_path(str(FOLDER / "presets.py"))


def test_the_presets_differ_in_what_they_print_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    found = presets()
    differing = {name: (paper, code) for name, paper, code in found["differences"]()}
    assert differing["sampling.group_size"] == (16, 8)
    assert differing["sampling.batch_rollouts"] == (2880, 1152)
    assert differing["ppo.minibatch_rollouts"] == (24, 6)
    assert differing["ppo.final_learning_rate"] == (None, 9e-7)
    assert differing["evaluation.contexts_per_task"] == (50, 48)
    assert "ppo.num_iterations" not in differing
    runpy.run_path(str(FOLDER / "presets.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert all(name in printed for name in differing)


def test_the_released_codes_learning_rate_moves_every_other_update() -> None:
    ppo = presets()["RELEASED_CODE"].ppo
    rates = [ppo.learning_rate_of(update) for update in range(1, 31)]
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-6)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=9e-7)
    for update, rate in enumerate(rates, start=1):
        assert rate == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if update % 2 == 0:
            theirs.step()
    assert {presets()["PAPER"].ppo.learning_rate_of(update) for update in range(1, 31)} == {1e-6}


@pytest.mark.parametrize("name", ["paper", "released-code"])
def test_a_preset_is_the_published_policy_on_45_tasks(name: str) -> None:
    experiment = presets()["PRESETS"][name]
    assert len(experiment.tasks) == 45
    assert not set(experiment.tasks) & set(ML45_HELD_OUT)
    assert sum(value.numel() for value in new_policy(experiment).parameters()) == 18_871_600


@pytest.mark.cli
@pytest.mark.sim
def test_a_stage_runs_from_the_command_line_with_any_field_changed(tmp_path: Path) -> None:
    launcher = (sys.executable, str(FOLDER / "autoencoder.py"), "released-code")
    result = run(*launcher, *SMALL, "--sft.autoencoder.num-epochs", "2", "--view", "lines", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "autoencoder: step" in result.stdout
    (folder,) = (tmp_path / "runs" / "quest-ml45-autoencoder").iterdir()
    config = json.loads((folder / "config.json").read_text())
    assert (config["ppo"]["minibatch_rollouts"], config["stages"]) == (6, ["autoencoder"])
    assert "nothing to resume" in run(*RIPT_RAY, "resume", str(folder), cwd=tmp_path).stderr


@pytest.mark.cli
def test_a_stage_without_a_start_says_what_it_needs(tmp_path: Path) -> None:
    result = run(sys.executable, str(FOLDER / "prior.py"), "paper", cwd=tmp_path)
    assert result.returncode == 2
    assert "start-from must name what the stage prior starts from" in result.stderr
    assert list(tmp_path.iterdir()) == []
