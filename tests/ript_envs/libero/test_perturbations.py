"""LIBERO-PRO's perturbations, named as evaluation benchmarks."""

from typing import get_args

import numpy as np
import pytest

from ript_envs.libero.benchmark import Libero, Perturbation, Suite
from ript_envs.libero.perturbations import problem

FILES: tuple[Perturbation, ...] = ("object", "position", "language", "task")
SUITES: tuple[Suite, ...] = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
MILK = "pick_up_the_milk_and_place_it_in_the_basket"


def test_each_suite_has_its_tasks_in_every_perturbation_that_the_package_ships() -> None:
    for suite in SUITES:
        unperturbed = Libero(suite)
        for kind in FILES:
            perturbed = Libero(suite, kind)
            assert perturbed.tasks == unperturbed.tasks
            for task in perturbed.tasks:
                with problem(suite, "none", task) as old, problem(suite, kind, task) as new:
                    assert old.read_text() != new.read_text()
                states = perturbed.evaluation_states(task)
                assert states.shape[0] == 50
                assert not np.array_equal(states[0], unperturbed.evaluation_states(task)[0]) or kind in FILES[2:]


def test_instructions_are_those_of_the_problem_where_they_are_perturbed_and_else_the_suites() -> None:
    words = {kind: Libero("libero_object", kind).instruction(MILK) for kind in get_args(Perturbation)}
    same = "pick up the milk and place it in the basket"
    assert {words[kind] for kind in ("none", "object", "position", "environment")} == {same}
    assert words["language"] == "grab milk and put into basket"
    assert words["task"] == "pick the butter and place it in the basket"


def test_in_another_room_only_the_furniture_differs_and_tasks_that_are_there_already_are_left_out() -> None:
    with problem("libero_object", "none", MILK) as old, problem("libero_object", "environment", MILK) as new:
        before, after = old.read_text(), new.read_text()
    assert not new.exists(), "a file that was made is removed"
    assert "(problem LIBERO_Living_Room_Tabletop_Manipulation)" in after
    assert "living_room_table - living_room_table" in after
    for block in ("(:objects", "(:goal", "(:language"):
        assert before[before.index(block) :].split(")")[0] == after[after.index(block) :].split(")")[0]
    moved = Libero("libero_10", "environment")
    assert len(moved.tasks) == 5
    assert not any(task.startswith("LIVING_ROOM") for task in moved.tasks)


def test_a_perturbation_has_a_name_of_its_own_and_libero_90_has_none() -> None:
    labels = [Libero("libero_object", kind).label for kind in get_args(Perturbation)]
    assert labels == [f"libero_object{end}" for end in ("", "_object", "_swap", "_lan", "_task", "_env")]
    with pytest.raises(ValueError, match=r"libero_90 has no perturbation task; LIBERO-PRO perturbs the other suites"):
        Libero("libero_90", "task")
    with pytest.raises(ValueError, match=r"perturbation must be one of none, object, .* not 'noise'"):
        Libero("libero_10", "noise")  # type: ignore[arg-type]


@pytest.mark.sim
@pytest.mark.parametrize(
    ("suite", "kind"),
    [
        pytest.param(suite, kind, marks=() if (suite, kind) == ("libero_object", "environment") else pytest.mark.slow)
        for suite in SUITES
        for kind in get_args(Perturbation)[1:]
    ],
)
def test_a_perturbed_task_is_built_reset_and_not_solved_at_its_start(suite, kind) -> None:
    benchmark = Libero(suite, kind)
    for task in benchmark.tasks[:1]:
        environment = benchmark.make(task)
        drawn = kind == "environment"
        state = benchmark.draw_initial_state(task, (0,)) if drawn else benchmark.evaluation_states(task)[0]
        environment.reset(state)
        before = np.float32(environment.observe()["ee_pos"])
        assert not any(environment.step(np.zeros(7, np.float32)) for _ in range(10))
        np.testing.assert_allclose(np.float32(environment.observe()["ee_pos"]), before, atol=5e-3)
        environment.close()
