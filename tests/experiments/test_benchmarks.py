"""Every benchmark runs at its smallest size and prints its table; what it measures is for people to read."""

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.commands import ROOT, run

FOLDER = ROOT / "experiments" / "benchmarks"

SMALLEST = {
    "broadcast": ({"megabytes": (1,), "actors": (2,), "num_broadcasts": 2}, "MB/s per actor"),
    "reliability": ({"group_s": 0.01, "batch_groups": 4, "num_batches": 2}, "overhead"),
    "sampling": ({"rollouts": (2,), "repeats": 1, "group_rollouts": 2}, "same tokens"),
    "lag": ({"lags": (1,), "num_actors": 2, "batch_groups": 2, "group_s": 0.1, "num_updates": 2}, "largest lag seen"),
}


@pytest.fixture(scope="module")
def _ray_that_finds_the_benchmarks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")]))
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


@pytest.mark.ray
@pytest.mark.usefixtures("_ray_that_finds_the_benchmarks")
@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_runs_and_prints_its_table(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    options, column = SMALLEST[name]
    module = importlib.import_module(name)
    module.main(module.Options(**options))
    assert column in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.cli
def test_a_benchmark_is_a_command(tmp_path: Path) -> None:
    options = ("--max-actors", "1", "--point-s", "0.2", "--group-s", "0.1")
    result = run(sys.executable, str(FOLDER / "throughput.py"), *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "efficiency" in result.stdout


def test_every_benchmark_is_tried() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {"timed", "throughput", *SMALLEST}
