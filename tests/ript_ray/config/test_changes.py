from dataclasses import dataclass, field, replace
from typing import Any, Literal

from experiments.quickstart import EXPERIMENT
from ript_ray.config.changes import changed_options, in_words, with_kinds
from ript_ray.config.experiment import register
from ript_ray.policies.quest.config import QuestConfig, QuestSFT


@dataclass(frozen=True)
class SmallQuest(QuestConfig):
    kind: Literal["small-quest"] = field(default="small-quest", kw_only=True)  # type: ignore[assignment]
    skill_width: int = 32


def changed(**sections: Any) -> dict[str, str]:
    values: dict[str, Any] = {
        name: replace(getattr(EXPERIMENT, name), **value) if isinstance(value, dict) else value
        for name, value in sections.items()
    }
    return changed_options(EXPERIMENT, replace(EXPERIMENT, **values))


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
