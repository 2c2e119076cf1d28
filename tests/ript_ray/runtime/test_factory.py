"""What can be checked before anything is started is checked then."""

import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.extending import EXPERIMENT
from ript_ray.errors import ConfigError, WorkerError
from ript_ray.pipeline import run_experiment
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.factory import session
from ript_ray.tracking.console import View
from ript_ray.tracking.logs import ViewMode


def test_several_learners_in_one_process_are_refused_before_a_run_exists(tmp_path: Path) -> None:
    two = replace(EXPERIMENT, num_learners=2)
    with pytest.raises(ConfigError, match="num-learners is 2; in one process it must be 1"):
        run_experiment(two, Cluster(in_process=True), runs=tmp_path / "runs", view=View(ViewMode.QUIET, 1))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_where_nothing_listens_is_named_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(WorkerError, match=f"no Ray cluster at {address} .*RAY_ADDRESS.*refused"), session(Cluster()):
        pass


def test_something_else_than_ray_at_the_address_is_named_within_a_minute() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(WorkerError, match=f"no Ray cluster at {address} .*does not answer as Ray does"):
            session(Cluster(address=address)).__enter__()
        assert time.monotonic() - started < 60, "Ray itself would try for many minutes"
