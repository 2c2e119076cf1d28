"""Actors that respond late or with invalid results: sampling stays unbiased, and no invalid group is trained."""

import math
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ript_ray.config.rl import Sampling
from ript_ray.rl.train import train
from ript_ray.runtime.serial import SerialRuntime
from tests.conftest import line_parts, line_stream
from tests.fakes import LineEnvironment
from tests.faulty import POLICY, is_first, runtime_with
from tests.ript_ray.runtime.test_runtimes import SAMPLING, Log, checksums, train_on

pytestmark = [pytest.mark.ray, pytest.mark.alone, pytest.mark.usefixtures("ray_cluster")]


class SlowProcessEnvironment(LineEnvironment):
    """Takes 2 ms per step; ten times as long in the first process that builds one."""

    def __init__(self, mark: Path):
        super().__init__()
        self._step_s = 0.02 if is_first(mark) else 0.002

    def step(self, action):
        time.sleep(self._step_s)
        return super().step(action)


def groups_per_s(make_environment) -> tuple[float, list[str]]:
    """Return the groups per second of four actors over one large update, and the weights."""
    runtime = runtime_with(make_environment, num_actors=4, straggler_factor=3.0)
    log = Log()
    sampling = Sampling(group_size=4, batch_rollouts=160)
    try:
        train(runtime, line_stream(), sampling=sampling, num_updates=1, seed=5, callbacks=[log])
    finally:
        runtime.close()
    collections = [record.stats for record in log.records]
    num_groups = sum(stats.verdicts.total() for stats in collections)
    return num_groups / sum(stats.rollout_s for stats in collections), checksums(log)


def test_one_of_four_actors_ten_times_slower_costs_less_than_a_third_and_biases_nothing(tmp_path: Path) -> None:
    (tmp_path / "nobody").write_text("0")
    ratios = []
    for attempt in range(5):  # other load on the machine can only lower the ratio
        healthy, expected = groups_per_s(lambda task: SlowProcessEnvironment(tmp_path / "nobody"))
        mark = tmp_path / f"mark-{attempt}"
        slowed, weights = groups_per_s(lambda task, mark=mark: SlowProcessEnvironment(mark))
        assert weights == expected, "slow groups must not be trained less often"
        ratios.append(slowed / healthy)
        if ratios[-1] >= 0.7:
            break
    assert max(ratios) >= 0.7, ratios


class NonsenseEnvironment(LineEnvironment):
    """Returns NaN instead of success: always, or in exactly one process, for whose third group all others wait."""

    def __init__(self, mark: Path | None = None):
        super().__init__()
        self._mark = mark
        self._broken = mark is None or is_first(mark)

    def reset(self, initial_state):
        super().reset(initial_state)
        if self._mark is None:
            return
        episodes = self._mark.with_name("episodes")
        if self._broken:
            with episodes.open("a") as file:
                file.write("x")
            return
        while not episodes.exists() or episodes.stat().st_size <= 2 * SAMPLING.group_size:
            time.sleep(0.01)

    def step(self, action):
        solved = super().step(action)
        return math.nan if self._broken else solved


def test_an_actor_that_keeps_making_malformed_groups_is_replaced_and_they_are_counted(tmp_path: Path) -> None:
    runtime = runtime_with(lambda task: NonsenseEnvironment(tmp_path / "mark"), run_ahead=0)
    try:
        log = train_on(runtime)
        assert runtime.dispatch_counts.num_replaced == 1
        assert log.records[-1].ledger.invalid == 3
        assert log.records[-1].ledger.trained == 12
    finally:
        runtime.close()


def test_a_search_with_only_malformed_groups_ends_with_a_clear_error() -> None:
    sampling = Sampling(group_size=4, batch_rollouts=16, max_uniform_groups=5)
    parts = replace(line_parts(POLICY), make_environment=lambda task: NonsenseEnvironment())
    outcome = train(SerialRuntime(parts), line_stream(), sampling=sampling, num_updates=1, seed=5)
    assert "no usable groups (5 groups in a row" in str(outcome.exhausted)
    assert outcome.exhausted is not None
    assert not outcome.exhausted.is_success
