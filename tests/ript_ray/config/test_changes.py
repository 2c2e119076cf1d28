from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from experiments import pixels, quest_ml45
from experiments.quickstart import EXPERIMENT
from ript_envs.metaworld.benchmark import MetaWorld
from ript_ray.config.changes import changed_options, in_words, require_effect, with_kinds
from ript_ray.config.experiment import Experiment, register
from ript_ray.errors import ConfigError
from ript_ray.policies.quest.config import QuestConfig, QuestSFT


@dataclass(frozen=True)
class SmallQuest(QuestConfig):
    kind: Literal["small-quest"] = field(default="small-quest", kw_only=True)  # type: ignore[assignment]
    skill_width: int = 32


def with_changes(**sections: Any) -> Experiment:
    values: dict[str, Any] = {
        name: replace(getattr(EXPERIMENT, name), **value) if isinstance(value, dict) else value
        for name, value in sections.items()
    }
    return replace(EXPERIMENT, **values)


def changed(**sections: Any) -> dict[str, str]:
    return changed_options(EXPERIMENT, with_changes(**sections))


def test_what_changed_is_said_in_the_options_that_were_typed() -> None:
    changes = changed(ppo={"clip_high": 0.28}, sampling={"batch_rollouts": 16}, tasks=("reach-v3", "push-v3"))
    assert changes == {"tasks": "reach-v3,push-v3", "batch-rollouts": "16", "clip-high": "0.28"}
    assert in_words(changes) == "tasks=reach-v3,push-v3 batch-rollouts=16 clip-high=0.28"
    assert changed(sampling={"dynamic": False, "max_groups_per_update": 40}) == {
        "dynamic": "no",
        "max-groups-per-update": "40",
    }
    assert changed(ppo={"final_learning_rate": 1e-5}) == {"final-learning-rate": "1e-05"}


def test_nothing_changed_and_another_seed_are_no_change() -> None:
    assert changed() == changed(seed=7) == {}
    assert in_words({}) == ""


def test_a_name_that_two_sections_share_keeps_its_section() -> None:
    assert changed(sampling={"contexts_per_task": 9}, evaluation={"seed": 0}) == {
        "sampling.contexts-per-task": "9",
        "evaluation.seed": "0",
    }
    assert isinstance(EXPERIMENT.sft, QuestSFT)
    assert changed(sft={"prior": replace(EXPERIMENT.sft.prior, num_steps=9)}) == {"prior.num-steps": "9"}


def test_another_kind_is_named_with_what_differs_from_its_defaults() -> None:
    register(SmallQuest)
    other = with_kinds(EXPERIMENT, policy="small-quest", benchmark="metaworld")
    assert changed_options(EXPERIMENT, other) == {"policy.kind": "small-quest"}
    chosen = replace(other, policy=SmallQuest(prior_width=96))
    assert changed_options(EXPERIMENT, chosen) == {"policy.kind": "small-quest", "prior-width": "96"}


WITHOUT_EFFECT: dict[str, tuple[dict[str, Any], str]] = {
    "cameras of the benchmark": (
        {"benchmark": MetaWorld(cameras=("corner_rgb",))},
        "--benchmark.cameras has no effect: policy.cameras names",
    ),
    "images that nobody reads": ({"benchmark": MetaWorld(rendering="fast")}, "--benchmark.rendering .* no camera"),
    "an encoder of such images": ({"policy": {"image_width": 8}}, "--policy.image-width .* no camera"),
    "embeddings of hashed words": ({"policy": {"num_tasks": 8}}, "--policy.num-tasks .*task-input is hashed"),
    "a schedule without an end": ({"ppo": {"schedule_every": 8}}, "--ppo.schedule-every .* rate is constant"),
    "memory for what is computed once": (
        {"ppo": {"num_iterations": 1, "encoding_cache_bytes": 0}},
        "--ppo.encoding-cache-bytes .* scored once",
    ),
    "noise on demonstrations of files": (
        {"demos": {"folder": Path("data"), "action_noise": 0.1}},
        "--demos.action-noise .* demos.folder",
    ),
    "a selection of what is recorded": ({"demos": {"selection": "spread"}}, "--demos.selection .* are recorded"),
    "demonstrations for nobody": (
        {"stages": ("ript",), "start_from": Path("run"), "demos": {"num_per_task": 9}},
        "--demos.num-per-task .* no supervised stage",
    ),
    "updates of a run without any": (
        {"stages": ("autoencoder",), "num_updates": 9},
        "--num-updates .* ript is not among the stages",
    ),
    "a stage that is not trained": (
        {"stages": ("prior", "ript"), "sft": {"autoencoder": EXPERIMENT.sft.prior}},  # type: ignore[attr-defined]
        r"--sft.autoencoder\..* autoencoder is not among",
    ),
    "versions that are not kept": ({"keep_weights": False, "keep_versions": 9}, "--keep-versions .* keeps none"),
}


@pytest.mark.parametrize("case", WITHOUT_EFFECT)
def test_an_option_without_effect_is_refused_with_the_reason(case: str) -> None:
    changes, message = WITHOUT_EFFECT[case]
    with pytest.raises(ConfigError, match=message):
        require_effect(EXPERIMENT, with_changes(**changes))


def test_what_an_experiments_file_states_without_effect_is_let_be() -> None:
    for experiment in (EXPERIMENT, pixels.EXPERIMENT, *quest_ml45.PRESETS.values()):
        require_effect(experiment, replace(experiment, seed=1, name="other"))
    few_shot = quest_ml45.PRESETS["few-shot-ript"]
    require_effect(few_shot, replace(few_shot, demos=replace(few_shot.demos, folder=Path("data"))))
    require_effect(EXPERIMENT, with_changes(ppo={"schedule_every": 2, "final_learning_rate": 1e-5}))
