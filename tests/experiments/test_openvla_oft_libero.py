"""OpenVLA-OFT on four LIBERO suites: the settings of the presets."""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments import openvla_oft_libero
from experiments.openvla_oft_libero import PRESETS, SUITES, paper, print_differences, released_code
from experiments.quest_ml45 import differences
from ript_envs.libero.benchmark import CAMERAS
from ript_ray.config.experiment import Experiment
from ript_ray.config.serialization import from_json, to_json
from ript_ray.errors import ConfigError
from ript_ray.policies.openvla_oft.config import OpenVLAOFTConfig
from ript_ray.rl.learner import learning_rate_of
from ript_ray.runs.preflight import require_start
from ript_ray.runtime.cluster import Cluster
from tests.commands import preset_here
from tests.oft_fixture import CHECKPOINT
from tests.openvla_oft_fixture import SCALE_HEAD


def test_presets_are_each_suite_with_both_recipes() -> None:
    assert list(PRESETS) == [f"{name}-{recipe}" for recipe in ("paper", "released-code") for name in SUITES]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_file_that_trains_on_what_the_policy_was_fine_tuned_with(name: str, tmp_path: Path) -> None:
    preset, file = PRESETS[name], tmp_path / "experiment.json"
    file.write_text(to_json(preset))
    assert from_json(file, Experiment, "an experiment") == preset
    assert isinstance(preset.policy, OpenVLAOFTConfig)
    assert preset.policy.suite == preset.benchmark.label == SUITES[name.partition("-")[0]]
    assert preset.policy.cameras == CAMERAS
    assert preset.benchmark.spec.image_shapes == dict.fromkeys(CAMERAS, (256, 256, 3))
    assert preset.benchmark.render_settings["rendering"] == "full"
    assert (preset.sampling.context_source, preset.evaluation.context_source) == ("demos", "benchmark")
    assert preset.stages == ("ript",)


@pytest.mark.parametrize("name", PRESETS)
def test_hyperparameters_that_the_paper_states_or_leaves_to_the_code_are_those_of_every_preset(name: str) -> None:
    preset = PRESETS[name]
    sampling, ppo = preset.sampling, preset.ppo
    assert (sampling.group_size, sampling.batch_rollouts, sampling.contexts_per_task) == (8, 192, 50)
    assert (sampling.dynamic, sampling.max_policy_lag) == (True, 0)
    assert (ppo.num_iterations, ppo.clip_low, ppo.clip_high) == (1, 0.1, 0.1)
    assert (ppo.minibatch_rollouts, ppo.loss_average, ppo.weight_decay) == (4 * 4, "rollout", 1e-4)
    assert ppo.max_grad_norms == {"lora": 1.0, "action-head": 1.0}
    assert ppo.learning_rates.keys() == preset.policy.parameter_groups.keys(), "nothing else is trained"
    assert learning_rate_of(ppo, 12) == learning_rate_of(ppo, 1), "constant"
    assert isinstance(preset.policy, OpenVLAOFTConfig)
    assert (preset.policy.lora_rank, preset.policy.lora_alpha, preset.policy.precision) == (32, 16, "bfloat16")
    assert (preset.evaluation.contexts_per_task, preset.evaluation.deterministic) == (50, True)
    assert (preset.num_updates, preset.checkpoint_every) == (12, 1)


def test_a_run_without_a_checkpoint_does_not_begin_also_on_a_benchmark_that_fits_this_preset_alone(
    tmp_path: Path,
) -> None:
    other = ("--plugin", "tests.turning:Turning", "--benchmark.kind", "turning")
    result = preset_here(openvla_oft_libero, "goal-paper", *other, "--cluster.in-process", cwd=tmp_path)
    assert result.returncode == 2
    assert "policy.checkpoint must name a folder with the published files of OpenVLA-OFT" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_demonstrations_or_other_contexts_does_not_begin(tmp_path: Path) -> None:
    policy = OpenVLAOFTConfig(checkpoint=CHECKPOINT, scale_head=SCALE_HEAD, suite="libero_goal")
    message = r"without demos\.folder, demonstrations are recorded: .*no scripted expert for open_the_middle_drawer"
    with pytest.raises(ConfigError, match=message):
        require_start(replace(paper("goal"), policy=policy), Cluster(in_process=True), tmp_path)


def test_episodes_are_as_long_as_those_of_openvla_oft() -> None:
    assert {name: paper(name).max_steps for name in SUITES} == {"spatial": 220, "object": 280, "goal": 300, "long": 520}


def test_recipes_differ_as_the_paper_and_the_authors_scripts_do(capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        name: {setting: code for setting, _, code in differences(paper(name), released_code(name))} for name in SUITES
    }
    theirs = paper("goal")
    assert isinstance(theirs.policy, OpenVLAOFTConfig)
    assert theirs.ppo.learning_rates == {"lora": 1e-4, "action-head": 1e-5}
    assert (theirs.policy.sampled_scale, theirs.policy.scale_factor) == ("as-scored", 1.0)
    sampled = {"policy.sampled_scale": "unclamped", "policy.scale_factor": 5.0}
    rates = {"ppo.learning_rates.lora": 5e-5, "ppo.learning_rates.action-head": 5e-5}
    assert found["spatial"] == sampled | rates | {"policy.scale_factor": 2.0}
    assert found["goal"] == sampled | {"ppo.learning_rates.lora": 1e-5}, "1e-5 for both"
    for name in ("object", "long"):
        tasks = found[name].pop("tasks")
        assert len(tasks) == 4
        assert set(tasks) < set(paper(name).tasks)
        assert found[name] == sampled | rates
    print_differences()
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 120
    assert "number of tasks                             10               4" in printed
    assert [line.split()[0] for line in printed.split("\n\n")[1].splitlines()[1:]] == list(found["spatial"])
