import gc
import weakref

import numpy as np
import pytest

from ript_envs.libero.benchmark import Libero
from ript_envs.libero.environment import LiberoEnvironment
from ript_envs.libero.scene import _SCENES, scene_key

BENCHMARK = Libero(suite="libero_goal", cameras=("agentview_rgb",), rendering="fast", simplified_meshes=True)
TASK = BENCHMARK.tasks[0]


@pytest.mark.sim
def test_environments_that_share_a_simulator_do_not_influence_each_other_and_free_it_together():
    states = BENCHMARK.evaluation_states(TASK)
    actions = np.random.default_rng(0).uniform(-1, 1, (12, 7)).astype(np.float32)
    first, second = BENCHMARK.make(TASK), BENCHMARK.make(TASK)
    first.reset(states[0])
    second.reset(states[1])
    interleaved = []
    for action in actions:
        interleaved.append((first.step(action), second.step(action)))
    together = first.observe(), second.observe()
    first.close()
    del first
    for number, state in enumerate(states[:2]):  # the second simulator alone, reused
        second.reset(state)
        assert [second.step(action) for action in actions] == [both[number] for both in interleaved]
        for name, expected in together[number].items():
            np.testing.assert_array_equal(second.observe()[name], expected)
    assert not np.array_equal(together[0]["agentview_rgb"], together[1]["agentview_rgb"])
    assert isinstance(second, LiberoEnvironment)
    model, renderer, stock = (weakref.ref(part) for part in (second._model, second._renderer, second._scene.stock))
    assert scene_key(TASK, BENCHMARK) in _SCENES
    second.close()
    assert (model(), renderer()) == (None, None)
    assert scene_key(TASK, BENCHMARK) not in _SCENES
    gc.collect()
    assert stock() is None


@pytest.mark.sim
def test_sensors_are_those_that_the_stock_environment_observes_and_demonstrations_store():
    environment = BENCHMARK.with_cameras(()).make(TASK)
    from robosuite.utils.transform_utils import quat2axisangle  # which only the simulator may import first

    assert isinstance(environment, LiberoEnvironment)
    environment.reset(BENCHMARK.evaluation_states(TASK)[0])
    angles = []
    for action in np.random.default_rng(0).uniform(-1, 1, (24, 7)).astype(np.float32):
        environment.step(action)
        seen, stock = environment.observe(), environment._scene.stock._get_observations(force_update=True)
        orientation = quat2axisangle(stock["robot0_eef_quat"].copy())
        angles.append(np.linalg.norm(orientation))
        expected = {"ee_pos": stock["robot0_eef_pos"], "gripper_states": stock["robot0_gripper_qpos"]}
        for name, value in {**expected, "ee_ori": orientation}.items():
            assert np.abs(seen[name] - value).max() < 1e-6, name
    assert min(angles) < np.pi < max(angles)
