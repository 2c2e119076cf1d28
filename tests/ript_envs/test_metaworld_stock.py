"""Our environments of MetaWorld equal the stock ones to the last bit: state, observation and success, at every step.

Of the 50 tasks a handful runs by default; together they read objects and decide on success in every way there is.
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from experiments.benchmarks.stock_metaworld import StockExpert, build_stock, integration_state
from ript_envs.metaworld.benchmark import MetaWorld
from ript_envs.metaworld.environment import MetaWorldEnvironment
from ript_envs.metaworld.tasks import QUEST_TASK_ORDER

pytestmark = pytest.mark.sim

CHECKED = (
    "assembly-v3",
    "basketball-v3",
    "dial-turn-v3",
    "hammer-v3",
    "lever-pull-v3",
    "pick-place-v3",
    "reach-v3",
    "stick-push-v3",
    "window-open-v3",
)
EACH_TASK = [pytest.param(task, marks=() if task in CHECKED else pytest.mark.slow) for task in sorted(QUEST_TASK_ORDER)]

DERIVED = ("xpos", "xquat", "geom_xpos", "site_xpos", "sensordata", "qacc", "qfrc_constraint", "light_xpos")
"""What MuJoCo computes from the state, and what renderers and tasks read."""


def require_equal(ours: MetaWorldEnvironment, stock: Any, seen: NDArray[np.float64] | None, where: str) -> None:
    np.testing.assert_array_equal(integration_state(ours._sim), integration_state(stock), err_msg=where)
    for name in DERIVED:
        np.testing.assert_array_equal(
            getattr(ours._sim.data, name), getattr(stock.data, name), err_msg=f"{where} {name}"
        )
    if seen is not None:
        np.testing.assert_array_equal(ours.observe()["state"], seen.astype(np.float32), err_msg=where)


def start_both(
    benchmark: MetaWorld, ours: MetaWorldEnvironment, task: str, seed: int
) -> tuple[Any, NDArray[np.float64]]:
    initial_state = benchmark.draw_initial_state(task, (seed,))
    stock = build_stock(task, initial_state)
    ours.reset(initial_state)
    seen, _ = stock.reset()
    require_equal(ours, stock, seen, f"reset {seed}")
    return stock, seen


@pytest.mark.parametrize("task", EACH_TASK)
def test_200_steps_of_the_expert_and_200_of_noise_equal_the_stock_environments(task: str) -> None:
    benchmark, expert, noise = MetaWorld(), StockExpert(task), np.random.default_rng(3)
    ours = benchmark.make(task)
    assert isinstance(ours, MetaWorldEnvironment)
    stock, seen = start_both(benchmark, ours, task, 0)
    for step in range(200):
        action = expert(stock, seen)
        np.testing.assert_array_equal(ours.expert_action(), action)
        seen, _, _, _, info = stock.step(action)
        assert ours.step(action) is bool(info["success"]), step
        require_equal(ours, stock, seen, f"expert's step {step}")
    stock, seen = start_both(benchmark, ours, task, 1)
    for step in range(200):
        action = noise.uniform(-1.2, 1.2, 4).astype(np.float32)
        seen, _, _, _, info = stock.step(np.clip(action, -1.0, 1.0))
        assert ours.step(action) is bool(info["success"]), step
        require_equal(ours, stock, seen if noise.random() < 0.3 else None, f"noisy step {step}")  # as policies look


def test_an_episode_ends_after_500_steps_as_in_the_stock_environment() -> None:
    benchmark = MetaWorld()
    environment = benchmark.make("reach-v3")
    environment.reset(benchmark.draw_initial_state("reach-v3", (0,)))
    for _ in range(500):
        environment.step(np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="must reset"):
        environment.step(np.zeros(4, np.float32))
