"""A run that is ended from outside, without a line of Python run in it, says so, is closed and can be resumed."""

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ript_ray.runs import checkpoint
from ript_ray.runs.run_dir import RunDir
from tests.commands import environment, only_folder

pytestmark = pytest.mark.cli

COMMAND = (sys.executable, "-m", "experiments.extending", "--view", "lines", "--num-updates", "100000")
ENDLESS = ("--checkpoint-every", "1000000", "--sampling.batch-rollouts", "16")


@contextlib.contextmanager
def started(*options: str, home: Path) -> Iterator[subprocess.Popen[str]]:
    """A run that has made two updates."""
    with subprocess.Popen(
        (*COMMAND, *ENDLESS, *options),
        cwd=home,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            assert any(line.startswith("update 2,") for line in process.stdout), process.communicate()
            yield process
        finally:
            process.kill()


def folder_of(home: Path) -> RunDir:
    return RunDir(only_folder(home / "runs" / "extending"))


def status_of(folder: RunDir) -> str:
    return str(json.loads(folder.status.read_text())["status"])


def status_in_mlflow(home: Path) -> list[tuple[str]]:
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as database:
        return database.execute("select status from runs").fetchall()


def test_a_run_killed_by_force_is_closed_and_says_how_it_goes_on(empty_store: Path, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    with started("--cluster.in-process", home=tmp_path) as run:
        while not status_in_mlflow(tmp_path):
            time.sleep(0.1)
        run.kill()
        _, errors = run.communicate(timeout=600)  # it ends with the process that closes the run
    folder = folder_of(tmp_path)
    assert errors.startswith(f"error: process {run.pid} has ended without closing its run (killed,")
    assert errors.endswith(f"ript-ray resume {folder.path}\n")
    assert status_of(folder) == "KILLED"
    assert status_in_mlflow(tmp_path) == [("KILLED",)]


@pytest.mark.ray
def test_a_run_whose_raylet_dies_saves_its_updates_and_names_the_cause_and_no_port_was_open_to_others(
    tmp_path: Path,
) -> None:
    with started(
        "--cluster.num-actors", "2", "--num-learners", "2", "--cluster.cpus-per-actor", "0.4", home=tmp_path
    ) as run:
        processes = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
        listening: dict[str, str] = {}
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended
                listening |= {
                    connection.laddr.ip: process.name()
                    for connection in process.net_connections("tcp")
                    if connection.status == psutil.CONN_LISTEN
                }
        (raylet,) = (process for process in processes if process.is_running() and process.name() == "raylet")
        raylet.send_signal(signal.SIGKILL)
        output, errors = run.communicate(timeout=600)
    folder = folder_of(tmp_path)
    assert run.returncode == 1
    assert errors.startswith(f"error: Ray's raylet (process {raylet.pid}) died on this machine"), errors
    assert errors.count("\n") == 1, errors
    assert "state-dump" not in output
    assert f"ript-ray resume {folder.path.relative_to(tmp_path)}" in output
    assert status_of(folder) == "KILLED"
    assert checkpoint.number_of(checkpoint.saved_in(folder.path)[-1]) >= 2, "the last update is saved"
    assert set(listening) <= {"127.0.0.1", "::ffff:127.0.0.1"}, listening
