"""Which tasks LIBERO's scripted expert can do."""

from pathlib import Path

import pytest

from ript_envs.libero.benchmark import Libero
from ript_ray.data.recording import files_of
from ript_ray.errors import ConfigError


def test_the_expert_does_all_groceries_and_bowls_and_no_doors_drawers_or_switches() -> None:
    assert Libero(suite="libero_object").tasks_with_expert == Libero(suite="libero_object").tasks
    assert Libero(suite="libero_spatial").tasks_with_expert == Libero(suite="libero_spatial").tasks
    assert set(Libero(suite="libero_goal").tasks_with_expert) == {
        "put_the_bowl_on_the_stove",
        "put_the_wine_bottle_on_top_of_the_cabinet",
        "put_the_bowl_on_top_of_the_cabinet",
        "put_the_cream_cheese_in_the_bowl",
        "put_the_bowl_on_the_plate",
        "put_the_wine_bottle_on_the_rack",
    }
    assert len(Libero(suite="libero_10").tasks_with_expert) == 4


def test_a_task_without_an_expert_is_refused_with_the_tasks_that_have_one(tmp_path: Path) -> None:
    goal = Libero(suite="libero_goal")
    with pytest.raises(ConfigError, match=r"no scripted expert for turn_on_the_stove; it has one for put_the_bowl_on"):
        files_of(goal, tmp_path, ["turn_on_the_stove"])
    assert tuple(files_of(goal, tmp_path, ["scripted"])) == goal.tasks_with_expert
