import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ript_envs.metaworld import RELATIVE_DIM, MetaWorld

pytestmark = pytest.mark.sim

TASKS = ("faucet-open-v3", "button-press-topdown-v3", "drawer-open-v3", "push-v3", "window-open-v3")


def trajectory(environment, initial_state: np.ndarray) -> list[np.ndarray]:
    environment.reset(initial_state)
    rng = np.random.default_rng(7)
    seen = [environment.observe()["state"]]
    for _ in range(40):
        environment.step(rng.uniform(-1, 1, 4).astype(np.float32))
        seen.append(environment.observe()["state"])
    return seen


@pytest.mark.parametrize("task", TASKS)
def test_a_reused_environment_starts_as_a_fresh_one_to_the_last_bit(task: str) -> None:
    benchmark = MetaWorld()
    first, second = (benchmark.draw_initial_state(task, (0, index)) for index in range(2))
    used, fresh = benchmark.make(task), benchmark.make(task)
    trajectory(used, second)
    np.testing.assert_array_equal(trajectory(used, first), trajectory(fresh, first))
    used.close()
    fresh.close()


def test_initial_states_are_the_same_in_every_process() -> None:
    code = (
        "from ript_envs.metaworld import MetaWorld\n"
        "for task in ('push-v3', 'drawer-open-v3'):\n"
        "    for index in range(3):\n"
        "        print(MetaWorld().draw_initial_state(task, (4, index)).tolist())\n"
    )
    envs = str(Path(__file__).parents[2] / "envs")
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {envs!r})\n{code}"]
    elsewhere = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    here = [
        str(MetaWorld().draw_initial_state(task, (4, index)).tolist())
        for task in ("push-v3", "drawer-open-v3")
        for index in range(3)
    ]
    assert elsewhere == here
    assert len(set(here)) == 6


@pytest.mark.parametrize("goal_visible", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_the_expert_solves_its_task_even_where_the_policy_cannot_see_the_goal(task: str, goal_visible: bool) -> None:
    benchmark = MetaWorld(goal_visible=goal_visible)
    environment = benchmark.make(task)
    environment.reset(benchmark.draw_initial_state(task, (0, 0)))
    outcomes = []
    while not (outcomes and outcomes[-1]) and len(outcomes) < 200:
        outcomes.append(environment.step(environment.expert_action()))
    assert outcomes[-1] is True
    assert not any(outcomes[:-1])
    environment.close()


def test_observations_have_the_stated_sizes_and_the_goal_can_be_hidden() -> None:
    state = MetaWorld().draw_initial_state("reach-v3", (0,))
    seen = {}
    for visible in (True, False):
        benchmark = MetaWorld(goal_visible=visible)
        environment = benchmark.make("reach-v3")
        environment.reset(state)
        seen[visible] = environment.observe()
        for name, dim in benchmark.state_dims.items():
            assert seen[visible][name].shape == (dim,)
            assert seen[visible][name].dtype == np.float32
        environment.close()
    assert seen[True]["state"][-3:].any()
    assert not seen[False]["state"][-3:].any()
    relative, full = seen[True]["relative"], seen[True]["state"]
    assert relative.shape == (RELATIVE_DIM,)
    np.testing.assert_allclose(relative[4:7], full[4:7] - full[:3])
    np.testing.assert_allclose(relative[7:], full[36:] - full[:3])


def test_a_wrong_task_or_state_is_refused_by_name() -> None:
    benchmark = MetaWorld()
    for use in (benchmark.make, benchmark.instruction, lambda t: benchmark.draw_initial_state(t, ())):
        with pytest.raises(ValueError, match="no task 'drawer-opn-v3': did you mean drawer-open-v3"):
            use("drawer-opn-v3")
    environment = benchmark.make("reach-v3")
    with pytest.raises(ValueError, match=r"initial state of shape \(6,\), not \(2,\)"):
        environment.reset(np.zeros(2))
    environment.close()


def test_instructions_are_the_tasks_names_in_words_and_all_differ() -> None:
    benchmark = MetaWorld()
    assert benchmark.instruction("drawer-open-v3") == "drawer open"
    assert len({benchmark.instruction(task) for task in benchmark.tasks}) == len(benchmark.tasks) == 50
