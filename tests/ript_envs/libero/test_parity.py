"""The same physics, pictures and successes as LIBERO's own environments, of one task per suite."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest

from experiments.benchmarks.stock_libero import begin, build_stock, frame
from ript_envs.libero.benchmark import Libero, Suite
from ript_envs.libero.environment import CAMERA_NAMES, LiberoEnvironment

pytestmark = pytest.mark.sim

NUM_ACTIONS = 200
MAX_EPISODE_STEPS = 280

SUITES: tuple[Suite, ...] = get_args(Suite)
SEEN_SUITES = ("libero_goal",)
"""Whose frames are compared by default."""


@dataclass
class Pair:
    """Our environment and LIBERO's own one, of a suite's first task and with the same furniture."""

    suite: Suite

    def __post_init__(self) -> None:
        self.benchmark = Libero(self.suite)
        self.task = self.benchmark.tasks[0]
        self.states = self.benchmark.evaluation_states(self.task)
        made = self.benchmark.make(self.task)
        assert isinstance(made, LiberoEnvironment)
        self.ours = made
        seed = self.ours._furniture_seed(self.states[0])
        self.stock: Any = build_stock(self.benchmark, self.task, seed=seed, cameras=False)

    def begin(self) -> None:
        self.ours.reset(self.states[0])
        begin(self.stock, self.states[0])

    def step(self, action: np.ndarray) -> bool:
        success = self.ours.step(action)
        self.stock.step(action.astype(np.float64))
        assert success == self.stock.check_success()
        return success

    def error(self) -> float:
        return float(np.abs(self.ours._data.qpos - self.stock.sim.data.qpos).max())


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    built = Pair(request.param)
    yield built
    built.stock.close()


@pytest.mark.parametrize("pair", SUITES, indirect=True)
def test_a_soft_reset_is_a_hard_one_and_200_random_actions_lead_to_the_stock_positions(pair: Pair) -> None:
    """The stock environment has just been built, which is a hard reset."""
    generator = np.random.default_rng(0)
    actions = generator.uniform(-1, 1, (NUM_ACTIONS, 7)).astype(np.float32)
    pair.ours.reset(pair.states[1])
    for action in actions[:5]:
        pair.ours.step(action)
    pair.begin()
    ours, stock = pair.ours, pair.stock.sim
    for name in ("body_pos", "body_quat"):  # furniture, too
        np.testing.assert_array_equal(getattr(ours._model, name), getattr(stock.model, name))
    np.testing.assert_allclose(ours._data.qpos, stock.data.qpos, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours._data.qvel, stock.data.qvel, rtol=0, atol=1e-9)
    errors = []
    for action in actions:
        pair.step(action)
        errors.append(pair.error())
    assert max(errors) < 1e-6
    assert np.abs(ours._data.qpos[:7] - pair.states[0][1:8]).max() > 0.1, "the arm has moved"


@pytest.mark.parametrize(
    "pair",
    [pytest.param(suite, marks=() if suite in SEEN_SUITES else pytest.mark.slow) for suite in SUITES],
    indirect=True,
)
def test_frames_of_a_state_are_those_of_the_stock_environment_pixel_for_pixel(pair: Pair) -> None:
    pair.begin()
    size, data = pair.benchmark.image_size, pair.ours._data
    for action in np.random.default_rng(1).uniform(-1, 1, (2, 7)).astype(np.float32):
        for _ in range(10):
            pair.ours.step(action)
        state = np.concatenate([[data.time], data.qpos, data.qvel])
        pair.ours._set_state(state)  # their positions may differ by the last bit, and so may a pixel
        pair.stock.set_init_state(state)
        for name, camera in CAMERA_NAMES.items():
            ours = pair.ours.render(name)[::-1]
            np.testing.assert_array_equal(ours, frame(pair.stock, camera, size))
            assert ours.std() > 10


@pytest.mark.parametrize("pair", ["libero_object"], indirect=True)
def test_an_experts_episode_succeeds_at_the_same_step(pair: Pair) -> None:
    pair.begin()
    for _ in range(MAX_EPISODE_STEPS):
        if pair.step(pair.ours.expert_action()):  # compares the two
            break
    else:
        pytest.fail("the expert fails")
    assert pair.error() < 1e-6
