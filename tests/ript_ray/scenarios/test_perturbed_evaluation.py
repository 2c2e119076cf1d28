"""Policies of LIBERO on the tasks of LIBERO-PRO: compared in pairs, never mixed with the unperturbed figures."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tyro

from ript_envs.libero.benchmark import Libero
from ript_ray.api import EvaluationOverrides
from ript_ray.cli.entrypoint import join_benchmark_fields
from ript_ray.cli.main import Compare, Evaluate
from ript_ray.config.experiment import Experiment
from ript_ray.config.rl import Evaluation
from ript_ray.data.contexts import held_out_requests
from ript_ray.errors import ConfigError
from ript_ray.evaluation.evaluate import EvaluationResult
from ript_ray.runs import checkpoint
from ript_ray.runs.saved_policy import SavedPolicy
from tests.conftest import TINY_QUEST

pytestmark = pytest.mark.sim

MILK = "pick_up_the_milk_and_place_it_in_the_basket"

EXPERIMENT = Experiment(
    "milk",
    (MILK,),
    benchmark=Libero("libero_object"),
    policy=replace(TINY_QUEST, sensors=("ee_pos",)),
    evaluation=Evaluation(contexts_per_task=2, context_source="benchmark"),
    max_steps=3,
)


def test_policies_are_evaluated_and_compared_on_perturbed_tasks_and_all_figures_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        checkpoint.save(Path(f"policy{seed}"), SavedPolicy.initial(replace(EXPERIMENT, seed=seed)))
    perturbed = ("--benchmark.perturbation", "task", "--cluster.in-process")
    with contextlib.closing(Libero("libero_object", "task").make(MILK)):  # its scene is shared with all evaluations
        assert parse("compare", "policy0", "policy1", *perturbed, "--out", "both.json").run() == 0
        assert parse("evaluate", "policy1", *perturbed, "--out", "one.json").run() == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "test contexts of milk, perturbation task, seed 0" in printed
    assert "policy1: test contexts, perturbation task" in printed
    assert json.loads(Path("both.json").read_text())["benchmark"] == {"perturbation": "task"}
    figures = json.loads(Path("one.json").read_text())
    assert figures["benchmark"] == {"perturbation": "task"}
    assert EvaluationResult.from_json(figures).overall.num_rollouts == 2


def parse(*arguments: str) -> Any:
    commands: dict[str, Any] = {"evaluate": Evaluate, "compare": Compare}
    return tyro.extras.subcommand_cli_from_dict(commands, args=join_benchmark_fields(arguments))


def test_fields_of_a_benchmark_are_options_of_a_command_that_learns_the_benchmark_from_its_arguments() -> None:
    command = parse(
        "evaluate", "RUN", "--benchmark.perturbation=task", "--tasks", "a", "--benchmark.reset-mode", "legacy"
    )
    assert command.fields_of_benchmark == {"perturbation": "task", "reset_mode": "legacy"}
    assert (command.checkpoint, command.tasks) == (Path("RUN"), ("a",))
    assert parse("compare", "A", "B").fields_of_benchmark == {}
    switched = parse("evaluate", "RUN", "--benchmark.small-textures", "--benchmark.simplified-meshes")
    assert switched.fields_of_benchmark == {"small_textures": "true", "simplified_meshes": "true"}


def test_contexts_and_instructions_of_an_evaluation_are_those_of_the_perturbed_task() -> None:
    plain, swapped, reworded = (
        held_out_requests(EvaluationOverrides(benchmark=changed).apply_to(EXPERIMENT))[0].contexts
        for changed in ({}, {"perturbation": "position"}, {"perturbation": "language"})
    )
    assert [context.initial_state for context in plain] != [context.initial_state for context in swapped]
    assert {context.instruction for context in swapped} == {"pick up the milk and place it in the basket"}
    assert {context.instruction for context in reworded} == {"grab milk and put into basket"}


def test_what_the_policy_reads_cannot_be_changed_for_an_evaluation() -> None:
    message = (
        r"--benchmark\.image-size decides what the policy reads, which an evaluation must not change; it may change "
        r"suite, perturbation, reset-mode, settle-steps, settle-gripper"
    )
    with pytest.raises(ConfigError, match=message):
        EvaluationOverrides(benchmark={"image_size": "64"}).apply_to(EXPERIMENT)
    with pytest.raises(ConfigError, match=r"--benchmark\.perturbatio: LIBERO has no such field; it has cameras, "):
        EvaluationOverrides(benchmark={"perturbatio": "task"}).apply_to(EXPERIMENT)
    with pytest.raises(ConfigError, match=r"--benchmark: perturbation: Input should be 'none', 'object', .* not 'all'"):
        EvaluationOverrides(benchmark={"perturbation": "all"}).apply_to(EXPERIMENT)
    with pytest.raises(ConfigError, match=r"--benchmark: .*libero_90 has no perturbation task"):
        EvaluationOverrides(benchmark={"perturbation": "task", "suite": "libero_90"}).apply_to(EXPERIMENT)
