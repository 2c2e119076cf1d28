"""LIBERO's simulator crashes in one actor and hangs in another: the weights are those of an undisturbed run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ript_envs.contract import Observation
from ript_envs.libero.benchmark import Libero
from ript_ray.runtime.serial import SerialRuntime
from tests.conftest import line_parts
from tests.faulty import POLICY, runtime_with
from tests.ript_ray.runtime.test_runtimes import checksums, train_on
from tests.ript_ray.scenarios.test_faults import FAULTS, HANG_S
from tests.wrapped import WrappedEnvironment

pytestmark = [pytest.mark.ray, pytest.mark.sim, pytest.mark.alone, pytest.mark.usefixtures("ray_cluster")]

LIBERO = Libero(
    "libero_object", image_size=32, rendering="fast", simplified_meshes=True, small_textures=True, settle_steps=0
)
TASK = LIBERO.tasks[0]


class Reach(WrappedEnvironment):
    """The hand is to move a few centimetres forward or back: the line of `tests.fakes` in LIBERO's simulator."""

    def __init__(self) -> None:
        super().__init__(LIBERO.make(TASK))
        self._start = LIBERO.evaluation_states(TASK)[0]

    def reset(self, initial_state: NDArray[np.float64]) -> None:
        self._inner.reset(self._start)
        self._goal = self._forward + 0.05 * initial_state[1]
        assert self._inner.render("agentview_rgb").std() > 10, "each actor makes a rendering context of its own"

    def step(self, action: NDArray[np.float32]) -> bool:
        self._inner.step(np.array([*action, 0, 0, 0, 0, 0, -1], np.float32))
        return bool(abs(self._forward - self._goal) < 0.01)

    def observe(self) -> Observation:
        return {"state": np.array([self._forward, self._goal], np.float32)}

    @property
    def _forward(self) -> float:
        return float(self._inner.observe()["ee_pos"][0])


class FaultyReach(Reach):
    """In one process the simulator crashes, in another it never returns, both in the middle of a group."""

    def __init__(self, folder: Path):
        super().__init__()
        self._folder = folder
        self._num_steps = 0

    def step(self, action: NDArray[np.float32]) -> bool:
        self._num_steps += 1
        for fault in ("segfault", "locked interpreter") if self._num_steps == 5 else ():
            try:
                (self._folder / fault).touch(exist_ok=False)
            except FileExistsError:
                continue
            FAULTS[fault]()
        return super().step(action)


def test_a_simulator_that_crashes_and_one_that_hangs_change_no_weight(tmp_path: Path) -> None:
    undisturbed = train_on(SerialRuntime(replace(line_parts(POLICY), make_environment=lambda task: Reach())), 1)
    runtime = runtime_with(lambda task: FaultyReach(tmp_path), straggler_factor=3.0, group_timeout_s=HANG_S)
    try:
        log = train_on(runtime, 1)
        assert {path.name for path in tmp_path.iterdir()} == {"segfault", "locked interpreter"}
        assert checksums(log) == checksums(undisturbed)
        assert log.records[-1].stats.success_rate == undisturbed.records[-1].stats.success_rate > 0
        ledger = log.records[-1].ledger
        assert (ledger.lost, ledger.duplicated > 0) == (1, True), (
            "the crashed group is repeated, the hung one duplicated"
        )
    finally:
        runtime.close()
