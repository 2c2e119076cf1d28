"""The tracking store may be down, hang, fail or crash: the run is not affected, and every point is delivered once."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ript_ray.tracking.mlflow_run import Identity, MlflowRun
from ript_ray.tracking.tracker import CLOSE_LIMIT_S, MlflowTracker, RunStatus
from tests.commands import environment
from tests.tracked import history, only_run, point, points, rates

IDENTITY = Identity("0123456789abcdef" * 2, "line", "first", {"ppo.clip_low": "0.2"}, {"commit": "abc"})
TIMEOUT_S = 240
"""Generous: an idle machine takes a few seconds."""


def test_metrics_are_logged_over_updates_environment_steps_and_seconds(store: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    tracker = MlflowTracker(IDENTITY, store)
    for each in points(1, 2):
        tracker.log(each)
    (tmp_path / "results.json").write_text("{}")
    tracker.log_files([tmp_path / "results.json"])
    assert tracker.close(RunStatus.FINISHED) is None
    run = only_run(store)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"ppo.clip_low": "0.2"}
    assert run.data.tags["commit"] == "abc"
    assert run.data.tags["ript_ray.run_id"] == IDENTITY.run_id
    assert {name: history(store, name) for name in run.data.metrics} == {
        "train/success_rate": [(1, 0.1), (2, 0.2)],
        "ppo/loss": [(1, -0.1), (2, -0.1)],
        "by_env_steps/train/success_rate": [(1000, 0.1), (2000, 0.2)],
        "by_wall_s/train/success_rate": [(2, 0.1), (5, 0.2)],
    }
    assert [file.path for file in MlflowClient(store).list_artifacts(run.info.run_id)] == ["results.json"]


def test_a_resumed_run_continues_the_same_mlflow_run_and_uploads_missing_points(store: str, tmp_path: Path) -> None:
    tracker = MlflowTracker(IDENTITY, store)
    tracker.log(point(1))
    assert tracker.close(RunStatus.KILLED) is None
    later = MlflowTracker(IDENTITY, store, points(1, 2))
    later.log(point(3))
    assert later.close(RunStatus.FINISHED) is None
    assert history(store) == rates(1, 2, 3)
    assert only_run(store).info.status == "FINISHED"


def test_a_store_that_rejects_files_gets_all_points_and_the_status_and_the_files_are_retried(
    store: str, tmp_path: Path
) -> None:
    tracker = MlflowTracker(IDENTITY, store)
    tracker.log(point(1))
    wait_until(lambda: history(store) == rates(1), "the point")
    tracker.log_files([tmp_path / "late.json"])
    problems: list[str | None] = []
    closing = threading.Thread(target=lambda: problems.append(tracker.close(RunStatus.FINISHED)))
    closing.start()
    wait_until(lambda: only_run(store).info.status == "FINISHED", "the end")
    assert history(store) == rates(1)
    (tmp_path / "late.json").write_text("{}")
    closing.join()
    assert problems == [None]


@pytest.mark.parametrize("wrong", ["garbage://nowhere", "http://127.0.0.1:9", "sqlite:////dev/null/mlflow.db"])
def test_a_store_that_takes_nothing_is_named_once_and_early(wrong: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ript_ray")
    tracker = MlflowTracker(IDENTITY, wrong, max_pause_s=1)
    wait_until(lambda: bool(own_messages(caplog)), "the warning")
    time.sleep(2)  # some attempts
    (message,) = own_messages(caplog)
    assert message.startswith(f"tracking: MLflow, {wrong}, takes nothing (")
    assert "everything is kept in metrics.jsonl" in message
    assert "points" not in str(tracker.close(RunStatus.KILLED)).split("(")[0]


def test_a_store_that_answers_is_named_with_its_experiment(store: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ript_ray")
    assert MlflowTracker(IDENTITY, store).close(RunStatus.FINISHED) is None
    assert own_messages(caplog) == [f"tracking: MLflow, {store}, experiment line"]


def test_a_store_that_has_not_failed_is_waited_for_though_the_machine_is_slow(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ript_ray.tracking.tracker.CLOSE_TIMEOUT_S", 0.0)
    tracker = MlflowTracker(IDENTITY, store)
    tracker.log(point(1))
    assert tracker.close(RunStatus.FINISHED) is None
    assert history(store) == rates(1)


def own_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("ript_ray")]


# --- Failing servers -------------------------------------------------------------------------------------------------

TRACK = """
import json, sys, time
from ript_ray.tracking.tracker import MlflowTracker, RunStatus
from tests.ript_ray.tracking.test_tracker import IDENTITY, point

tracker, slowest_s = MlflowTracker(IDENTITY, sys.argv[1]), 0.0
for update in range(1, 31):
    started = time.perf_counter()
    tracker.log(point(update))
    slowest_s = max(slowest_s, time.perf_counter() - started)
    time.sleep(0.05)
started = time.perf_counter()
problem = tracker.close(RunStatus.FINISHED)
print(json.dumps([slowest_s, time.perf_counter() - started, problem]), flush=True)
"""


class Failing(BaseHTTPRequestHandler):
    """Answers everything with 500 and a Retry-After of one hour."""

    num_created = 0  # counted by `forgetful` only

    def do_GET(self) -> None:
        self.send_response(500)
        self.send_header("Retry-After", "3600")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Run an HTTP server in this process and yield its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def hanging() -> Iterator[str]:
    """Accept connections without ever answering."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.cli
@pytest.mark.alone
def test_a_server_that_is_down_hangs_or_fails_delays_neither_logging_nor_the_exit() -> None:
    with hanging() as hung, serving(Failing) as failing, contextlib.ExitStack() as processes:
        servers = {"down": "http://127.0.0.1:9", "hanging": hung, "failing": failing}
        started = {name: processes.enter_context(track_in_a_process(uri)) for name, uri in servers.items()}
        for name, process in started.items():
            assert process.stdout is not None
            slowest_s, close_s, problem = json.loads(process.stdout.readline())
            closed = time.monotonic()
            assert process.wait(TIMEOUT_S) == 0
            assert time.monotonic() - closed < 60, f"{name}: something else delayed the exit"
            assert slowest_s < 30, f"{name}: logging waited for the store"
            assert close_s < CLOSE_LIMIT_S + 30, name
            assert "30 of 30 points were not delivered to the tracking store" in problem, name
            assert "\n" not in problem


@contextlib.contextmanager
def track_in_a_process(uri: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", TRACK, uri]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


# --- A real server that crashes ---------------------------------------------------------------------------------------


class Server:
    """`mlflow server` on its own port, with a store that survives it."""

    def __init__(self, home: Path):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.store = f"sqlite:///{home}/server.db"
        self._log = (home / "server.log").open("w")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        self._process = subprocess.Popen(
            [*command, "--workers", "1", "--backend-store-uri", self.store],
            env=environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            cwd=Path(self._log.name).parent,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # one group, to be killed whole
        )

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


def forgetful(port: int) -> type[Failing]:
    """Forward requests to the server at `port`, but lose the response to the first that creates a run."""

    class Forgetful(Failing):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
            headers = {
                name: value for name, value in self.headers.items() if name.lower() in ("content-type", "accept")
            }
            url = f"http://127.0.0.1:{port}{self.path}"
            try:
                with urllib.request.urlopen(
                    urllib.request.Request(url, body, headers, method=self.command), timeout=TIMEOUT_S
                ) as answer:
                    status, content = answer.status, answer.read()
            except urllib.error.HTTPError as error:
                status, content = error.code, error.read()
            except OSError:
                return  # the server is down: close the connection without a response
            if self.path.endswith("/runs/create"):
                Forgetful.num_created += 1
                if Forgetful.num_created == 1:
                    return
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

    return Forgetful


@pytest.mark.cli
def test_a_server_that_starts_late_loses_a_response_and_crashes_gets_every_point_once(
    server: Server,
) -> None:
    handler = forgetful(server.port)
    with serving(handler) as uri:
        tracker = MlflowTracker(IDENTITY, uri, max_pause_s=1)
        for each in points(1, 2):
            tracker.log(each)
        server.start()
        wait_until(lambda: rates_in(server) == rates(1, 2), "what was logged before the server started")
        server.kill()
        tracker.log(point(3))
        time.sleep(2)  # some attempts
        server.start()
        tracker.log(point(4))
        wait_until(lambda: rates_in(server) == rates(1, 2, 3, 4), "what was logged while the server was down")
        assert tracker.close(RunStatus.FINISHED) is None
    assert handler.num_created == 1, "the run was created twice after a lost response"
    server.kill()
    assert only_run(server.store).info.status == "FINISHED"
    assert only_run(server.store).data.params == IDENTITY.params
    assert history(server.store) == rates(1, 2, 3, 4)


def rates_in(server: Server) -> list[tuple[int, float]] | None:
    """Success rates in the server's database."""
    import sqlite3

    path = server.store.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT step, value FROM metrics WHERE key = 'train/success_rate' ORDER BY step")
        return rows.fetchall()


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):  # the database does not exist yet, or has no tables
            if holds():
                return
        time.sleep(0.2)
    pytest.fail(f"{what} did not arrive")


def test_artifacts_go_beside_the_database_whatever_the_working_directory(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "results.json").write_text("{}")
    MlflowRun(IDENTITY, store).log_files([tmp_path / "results.json"])
    assert list((tmp_path / "mlruns").rglob("results.json"))
    assert not list((tmp_path / "elsewhere").iterdir())
