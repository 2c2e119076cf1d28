"""The published QueST on LIBERO's five suites: the settings of the presets."""

from pathlib import Path

import pytest
import torch

from experiments.quest_libero import PRESETS, SUITES, few_shot, paper, print_differences, released_code
from experiments.quest_ml45 import differences
from ript_envs.libero.benchmark import Libero
from ript_ray.config.experiment import Experiment
from ript_ray.config.serialization import from_json, to_json
from ript_ray.policies.quest.presets import SPECS, published
from ript_ray.rl.learner import learning_rate_of
from ript_ray.runs.saved_policy import SavedPolicy


def test_the_published_policy_reads_what_the_benchmark_offers() -> None:
    theirs, ours = SPECS["libero"], Libero().spec
    assert theirs.image_shapes == ours.image_shapes
    assert theirs.state_dims == {name: dim for name, dim in ours.state_dims.items() if name != "ee_ori"}
    assert (theirs.action_dim, theirs.control_hz, theirs.max_steps) == (
        ours.action_dim,
        ours.control_hz,
        ours.max_steps,
    )


def test_presets_are_each_suite_with_both_recipes_and_the_papers_few_shot_settings() -> None:
    recipes = [f"{name}-{recipe}" for recipe in ("paper", "released-code") for name in SUITES]
    assert list(PRESETS) == recipes + [f"few-shot-{number}" for number in (1, 2, 3, 4, 5, 10)]
    assert [len(paper(name).tasks) for name in SUITES] == [10, 10, 10, 10, 90]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_file_that_trains_the_published_policy_and_evaluates_on_the_benchmarks_init_states(
    name: str, tmp_path: Path
) -> None:
    preset, file = PRESETS[name], tmp_path / "experiment.json"
    file.write_text(to_json(preset))
    assert from_json(file, Experiment, "an experiment") == preset
    assert preset.policy == published("libero")
    assert (preset.max_steps, preset.tasks) == (600, preset.benchmark.tasks)
    assert (preset.sampling.context_source, preset.evaluation.context_source) == ("demos", "benchmark")
    assert preset.sampling.contexts_per_task == preset.demos.num_per_task
    assert preset.demos.num_held_out == 0, "the official files have 50 demonstrations"
    assert preset.evaluation.contexts_per_task % preset.evaluation.batch_size == 0, "no batch needs two simulators"


def test_the_policy_has_the_published_number_of_parameters() -> None:
    policy = SavedPolicy.initial(paper("goal")).build()
    assert isinstance(policy, torch.nn.Module)
    assert sum(value.numel() for value in policy.parameters()) == 20_013_683


def test_recipes_differ_as_the_paper_and_the_authors_scripts_do(capsys: pytest.CaptureFixture[str]) -> None:
    suites, large = (
        {name: (theirs, code) for name, theirs, code in differences(paper(suite), released_code(suite))}
        for suite in ("goal", "90")
    )
    for found in (suites, large):
        assert found["benchmark.reset_mode"] == ("settled", "legacy")
        assert (found["sampling.group_size"], found["sampling.batch_rollouts"]) == ((16, 8), (2880, 144 * 8))
        assert (found["ppo.minibatch_rollouts"], found["evaluation.contexts_per_task"]) == ((24, 6), (50, 48))
        assert "ppo.num_iterations" not in found
    assert (suites["sft.prior.num_epochs"], large["sft.prior.num_epochs"]) == ((200, 201), (20, 21))
    assert (paper("goal").num_updates, paper("90").num_updates) == (30, 15)
    print_differences()
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.split("\n\n")[1].splitlines()[1:]] == list(suites)
    assert [line.split()[0] for line in printed.split("\n\n")[3].splitlines()[1:]] == list(large)
    assert "MuJoCo 3.3.0" in printed


@pytest.mark.parametrize(("name", "num_tasks", "length", "end"), [("goal", 10, 20, 9e-7), ("90", 90, 6, 1e-8)])
def test_the_released_codes_learning_rate_changes_once_per_epoch_of_50_contexts_a_task(
    name: str, num_tasks: int, length: int, end: float
) -> None:
    preset = released_code(name)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-6)
    upstream = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=length, eta_min=end)
    for update in range(1, preset.num_updates + 1):
        assert learning_rate_of(preset.ppo, update) == pytest.approx(upstream.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if update % (50 * num_tasks // 180) == 0:
            upstream.step()
    assert (upstream.get_last_lr()[0] == 1e-6) == (name == "90"), "never stepped with 90 tasks"


def test_few_shot_starts_from_the_prior_of_libero_90_on_evenly_spaced_demonstrations_of_libero_long() -> None:
    preset = few_shot(5)
    assert preset.benchmark == Libero(suite="libero_10")
    assert preset.stages == ("prior", "ript")
    assert (preset.demos.num_per_task, preset.demos.selection, preset.sampling.contexts_per_task) == (5, "spread", 5)
    assert preset.policy == paper("90").policy, "so that it starts from a run of LIBERO-90"
