"""Benchmarks without a scripted expert."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ript_envs.contract import Environment, ScriptedExpert
from ript_ray.config.data import Demonstrations
from ript_ray.data.demonstrations import record_demonstrations
from ript_ray.data.recording import Plan, record_files
from ript_ray.errors import RiptError
from ript_ray.runtime.cluster import Cluster
from tests.fakes import LineBenchmark, LineEnvironment
from tests.wrapped import WrappedEnvironment


@dataclass(frozen=True)
class BenchmarkWithoutExpert(LineBenchmark):
    def make(self, task: str) -> Environment:
        return WrappedEnvironment(LineEnvironment())


def record_in_memory(folder: Path) -> None:
    record_demonstrations(BenchmarkWithoutExpert(), "left", settings=Demonstrations(), max_steps=12, seed=0)


def record_to_a_file(folder: Path) -> None:
    plan = Plan(BenchmarkWithoutExpert(), num_episodes=1, action_noise=0.0, max_steps=12, seed=0)
    record_files(plan, {"left": folder / "left.hdf5"}, Cluster(in_process=True))


@pytest.mark.parametrize("record", [record_in_memory, record_to_a_file])
def test_recording_without_an_expert_is_refused_with_the_alternative(
    record: Callable[[Path], None], tmp_path: Path
) -> None:
    message = r"the line has no scripted expert for left: .* only read from files \(demos\.folder\)"
    with pytest.raises(RiptError, match=message):
        record(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_expert_is_recognized_by_its_method() -> None:
    assert isinstance(LineEnvironment(), ScriptedExpert)
    assert not isinstance(BenchmarkWithoutExpert().make("left"), ScriptedExpert)
