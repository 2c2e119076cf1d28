"""How an episode of LIBERO begins: the authors' stale first observation, and noise on the places of objects."""

from dataclasses import replace

import numpy as np
import pytest

from ript_envs.libero.benchmark import Libero
from ript_envs.libero.environment import LiberoEnvironment

pytestmark = pytest.mark.sim

SPATIAL = Libero(suite="libero_spatial", rendering="fast", simplified_meshes=True, image_size=64)
ON_RAMEKIN = "pick_up_the_black_bowl_on_the_ramekin_and_place_it_on_the_plate"
IN_DRAWER = "pick_up_the_black_bowl_in_the_top_drawer_of_the_wooden_cabinet_and_place_it_on_the_plate"
STILL = np.zeros(7, dtype=np.float32)
ARM = slice(1, 8)


def make(task: str, benchmark: Libero = SPATIAL) -> LiberoEnvironment:
    environment = benchmark.make(task)
    assert isinstance(environment, LiberoEnvironment)
    return environment


def test_the_authors_first_observation_is_of_another_scene_and_the_default_one_of_the_initial_state() -> None:
    seeing = SPATIAL.with_cameras(("agentview_rgb",))
    state = SPATIAL.evaluation_states(ON_RAMEKIN)[0]
    legacy, settled = (make(ON_RAMEKIN, replace(seeing, reset_mode=mode)) for mode in ("legacy", "settled"))
    first, second = {}, {}
    for name, environment in (("legacy", legacy), ("settled", settled)):
        environment.reset(state)
        first[name] = environment.observe()
        environment.step(STILL)
        second[name] = environment.observe()
    errors = {name: np.abs(seen["joint_states"] - state[ARM]).max() for name, seen in first.items()}
    assert errors["settled"] < 0.005
    assert errors["legacy"] > 0.01
    assert np.abs(second["legacy"]["joint_states"] - state[ARM]).max() < 0.005
    changes = {  # mean change of the picture by a step without motion, of 255
        name: np.abs(first[name]["agentview_rgb"].astype(int) - second[name]["agentview_rgb"]).mean() for name in first
    }
    assert changes["settled"] < 0.5
    assert changes["legacy"] > 2.0
    legacy.reset(state)
    np.testing.assert_array_equal(legacy.observe()["agentview_rgb"], first["legacy"]["agentview_rgb"])


def test_the_gripper_opens_while_the_scene_settles_if_so_set_and_states_are_drawn_without_it() -> None:
    state = SPATIAL.evaluation_states(ON_RAMEKIN)[0]
    opening = replace(SPATIAL, settle_gripper="open")
    seen = {}
    for name, benchmark in (("still", SPATIAL), ("open", opening), ("by hand", replace(SPATIAL, settle_steps=0))):
        environment = make(ON_RAMEKIN, benchmark)
        environment.reset(state)
        for _ in range(10 if name == "by hand" else 0):
            environment.step(np.array([0, 0, 0, 0, 0, 0, -1], np.float32))
        seen[name] = environment.observe()["gripper_states"]
    np.testing.assert_array_equal(seen["open"], seen["by hand"])
    assert (np.abs(seen["open"]) > np.abs(seen["still"]) + 0.01).all()
    still, open_ = (each.draw_initial_state(ON_RAMEKIN, (3,)) for each in (SPATIAL, opening))
    np.testing.assert_array_equal(open_, still)


@pytest.mark.parametrize("task", [ON_RAMEKIN, IN_DRAWER])
def test_moved_objects_stay_where_they_are_put_on_what_they_stood_on_and_nothing_else_moves(task: str) -> None:
    environment = make(task)
    model, data = environment._model, environment._data
    state = SPATIAL.evaluation_states(task)[0]
    environment.reset(state)
    furniture, heights = environment._state.furniture, data.xpos[:, 2].copy()
    moved = [SPATIAL.move_objects(task, state, std_m=0.025, seed=(seed,)) for seed in range(4)]
    np.testing.assert_array_equal(moved[0], SPATIAL.move_objects(task, state, std_m=0.025, seed=(0,)))
    poses, velocities = environment._objects_in_state()
    for each in moved:
        np.testing.assert_array_equal(np.delete(each, [*poses, *velocities]), np.delete(state, [*poses, *velocities]))
        assert not each[velocities].any()
        environment.reset(each)
        for before, after in zip(furniture, environment._state.furniture, strict=True):
            np.testing.assert_array_equal(before, after)
        settled = np.concatenate([[0.0], data.qpos])
        np.testing.assert_allclose(settled[poses].reshape(-1, 7)[:, :3], each[poses].reshape(-1, 7)[:, :3], atol=0.002)
        np.testing.assert_allclose(data.xpos[:, 2], heights, atol=0.01)
    shifts = np.array([(each[poses] - moved[0][poses]).reshape(-1, 7)[:, :2] for each in moved[1:]])
    assert (np.abs(shifts).max(axis=(0, 2)) > 0.005).all(), "every object moves"
    names = [model.body(body).name for body in model.jnt_bodyid[model.jnt_type == 0]]
    ridden = {"akita_black_bowl_1_main": "glazed_rim_porcelain_ramekin_1_main"}
    for rider, base in ridden.items() if task == ON_RAMEKIN else ():
        np.testing.assert_allclose(shifts[:, names.index(rider)], shifts[:, names.index(base)], atol=1e-9)


def test_an_object_without_room_stays_where_it_is() -> None:
    state = SPATIAL.evaluation_states(IN_DRAWER)[0]
    far = [SPATIAL.move_objects(IN_DRAWER, state, std_m=50.0, seed=(seed,)) for seed in range(2)]
    np.testing.assert_array_equal(far[0], far[1])


def test_objects_in_drawers_and_on_furniture_are_drawn_where_the_benchmark_has_them() -> None:
    poses, _ = make(IN_DRAWER)._objects_in_state()
    drawn = [SPATIAL.draw_initial_state(IN_DRAWER, (seed,))[poses].reshape(-1, 7)[:, :3] for seed in range(3)]
    known = SPATIAL.evaluation_states(IN_DRAWER)[:, poses].reshape(50, -1, 7)[:, :, :3]
    margin = np.array([0.03, 0.03, 0.12])  # the benchmark's are above where they will lie
    assert (np.array(drawn) > known.min(axis=0) - margin).all()
    assert (np.array(drawn) < known.max(axis=0) + margin).all()
