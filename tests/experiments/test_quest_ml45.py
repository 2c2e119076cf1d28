"""The published QueST on ML45: both presets, and their launcher as a command."""

import json
import sys
from pathlib import Path

import pytest
import torch

from experiments import quest_ml45
from experiments.quest_ml45 import (
    FEW_SHOT,
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
from tests.commands import RIPT_RAY, only_folder, run

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
    table, _, rest = capsys.readouterr().out.partition("\n\n")
    assert [line.split()[0] for line in table.splitlines()[1:]] == list(differing)
    assert "MetaWorld v3 for the authors' v2" in rest
    assert "MetaWorld v3 for the authors' v2" in " ".join((quest_ml45.__doc__ or "").split())


def test_demonstrations_per_task_are_the_papers_50_and_quests_100() -> None:
    assert (PAPER.demos.num_per_task, RELEASED_CODE.demos.num_per_task) == (50, 100)


def test_the_few_shot_preset_is_quests_new_tasks_first_demonstrations_and_their_own_contexts() -> None:
    assert FEW_SHOT.tasks == ML45_HELD_OUT
    assert (FEW_SHOT.demos.num_per_task, FEW_SHOT.demos.selection, FEW_SHOT.demos.num_held_out) == (5, "first", 0)
    assert (FEW_SHOT.sampling.context_source, FEW_SHOT.sampling.contexts_per_task) == ("demos", 5)
    assert FEW_SHOT.policy == PAPER.policy, "so that it starts from the run of the 45 tasks"
    assert FEW_SHOT.stages == ("prior", "ript")


def test_the_released_codes_learning_rate_changes_once_per_epoch_of_2250_contexts() -> None:
    rates = [learning_rate_of(RELEASED_CODE.ppo, update) for update in range(1, 31)]
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-6)
    upstream = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=9e-7)
    for update, rate in enumerate(rates, start=1):
        assert rate == pytest.approx(upstream.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if update % (50 * 45 // 180) == 0:
            upstream.step()
    assert 0.997e-6 < rates[-1] < 1e-6, "hardly changes within 30 updates"
    assert {learning_rate_of(PAPER.ppo, update) for update in range(1, 31)} == {1e-6}


@pytest.mark.parametrize("experiment", [PAPER, RELEASED_CODE], ids=["paper", "released-code"])
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
    ] + [(f"few-shot-{stage}", f"quest-ml45-few-shot-{stage}", (stage,)) for stage in ("prior", "ript")]
    for preset in (PAPER, RELEASED_CODE):
        assert (preset.name, preset.stages) == ("quest-ml45", ("autoencoder", "prior", "ript"))
    assert len(PRESETS) == 11


@pytest.mark.cli
@pytest.mark.sim
def test_a_stage_runs_from_the_command_line_with_any_field_changed(tmp_path: Path) -> None:
    options = ("released-code-autoencoder", *SMALL, "--sft.autoencoder.num-epochs", "2", "--view", "lines")
    result = run(*QUEST_ML45, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "autoencoder: step" in result.stdout
    folder = only_folder(tmp_path / "runs" / "quest-ml45-autoencoder")
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
