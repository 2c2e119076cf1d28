"""The doctor's checks, on real files, folders and servers."""

import contextlib
import http.server
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ript_ray.cli.doctor.cluster import cluster, head_ports
from ript_ray.cli.doctor.finding import Finding, by_pip
from ript_ray.cli.doctor.graphics import driver_version
from ript_ray.cli.doctor.libero import configuration
from ript_ray.cli.doctor.machine import clock, ray_disk, runs_folder, shared_memory
from ript_ray.cli.doctor.packages import known_problems, problem_of
from ript_ray.cli.doctor.tracking import mlflow
from tests.commands import ript_ray_here


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


class Health(http.server.BaseHTTPRequestHandler):
    """A server whose clock is a minute behind, and which answers as its port's owner asks."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(time.time() - 60)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass


class Broken(Health):
    status = 503


@contextlib.contextmanager
def serving(handler: type[Health]) -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def marks(findings: Iterator[Finding]) -> dict[str, str]:
    return {finding.thing: finding.mark for finding in findings}


def test_the_findings_are_json_on_request_and_the_exit_code_tells_whether_a_run_would_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = ript_ray_here("doctor", "--json", cwd=tmp_path)
    findings = {row["thing"]: row for row in json.loads(shown.stdout)["findings"]}
    assert {"Python", "disk", "shared memory", "clock", "MUJOCO_GL", "libEGL.so.1", "MLflow", "LIBERO"} <= set(findings)
    assert {row["mark"] for row in findings.values()} <= {"ok", "warning", "error"}
    assert shown.returncode == any(row["mark"] == "error" for row in findings.values())
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    ill = ript_ray_here("doctor", cwd=tmp_path)
    assert ill.returncode == 1
    assert f"\nerror  RAY_ADDRESS  no Ray at {address}  " in ill.stdout
    assert "refused" in ill.stdout
    assert re.search(r"\na run would fail: .*RAY_ADDRESS", ill.stdout)


def test_a_run_on_one_machine_needs_neither_token_nor_ports() -> None:
    assert list(cluster()) == []


def test_the_token_of_a_cluster_must_be_there_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    missing, _ = cluster()
    assert (missing.thing, missing.mark) == ("Ray's token", "warning"), "clusters/local/head.sh makes one"
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("secret")
    file.chmod(0o644)
    public, _ = cluster()
    assert (public.mark, public.fix) == ("warning", f"chmod 600 {file}")
    file.chmod(0o600)
    private, _ = cluster()
    assert private.mark == "ok"
    assert "secret" not in private.found
    file.write_text("")
    monkeypatch.setenv("RAY_ADDRESS", "http://localhost:8265")
    assert marks(cluster()) == {"Ray's token": "error", "RAY_ADDRESS": "error"}


def test_ports_in_use_are_named_with_the_option_that_changes_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        used, free = server.getsockname()[1], free_port()
        finding = head_ports({"--port": free, "--dashboard-port": used})
    assert (finding.mark, finding.found) == ("warning", f"in use: {used}")
    assert "clusters/local/head.sh --dashboard-port PORT" in finding.fix
    assert head_ports({"--port": free}).good


def test_mlflow_is_asked_and_its_clock_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Health) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("//", "//someone:secret@"))
        answer, its_clock = mlflow()
    assert (answer.mark, answer.found) == ("ok", f"{address} answers with 200")
    assert its_clock.mark == "warning"
    behind = re.fullmatch(r"(\d+) s behind this machine's", its_clock.found)
    assert behind
    assert 59 <= int(behind[1]) < 600, "a busy machine takes its time to answer"
    silent, *_ = mlflow()
    assert silent.mark == "warning"
    assert "refused" in silent.found
    assert "secret" not in silent.found
    with serving(Broken) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert next(mlflow()).found == f"{address} answers with 503"
        assert not next(mlflow()).good


def test_mlflows_database_must_be_in_a_folder_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert marks(mlflow()) == {"MLflow": "ok"}
    for file, mark in ((tmp_path / "mlflow.db", "ok"), (tmp_path / "none" / "mlflow.db", "warning")):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
        assert marks(mlflow()) == {"MLflow": mark}


def test_a_folder_that_runs_cannot_be_written_to_is_an_error(tmp_path: Path) -> None:
    findings = marks(runs_folder(tmp_path / "not" / "yet" / "there"))
    assert findings["folder of the runs"] == findings["clock of its file system"] == "ok"
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    assert marks(runs_folder(Path("/proc/runs")))["folder of the runs"] == "error"


def test_a_clock_before_the_code_and_disks_without_space_are_found(tmp_path: Path) -> None:
    code = shutil.copy(__file__, tmp_path)
    assert clock(Path(code)).good
    os.utime(code, (time.time() + 86400, time.time() + 86400))
    assert "before ript-ray was installed" in clock(Path(code)).found
    assert not shared_memory(Path("/proc")).good, "it has no bytes at all"
    assert ray_disk(tmp_path / "none").mark == "error"


def test_the_driver_is_named_by_its_kernel_module(tmp_path: Path) -> None:
    file = tmp_path / "version"
    assert driver_version(file) == ""
    for line in (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.08  Mon Mar  4 22:31:12 UTC 2024",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.161.08  Release Build  (dvs-builder@U16)",
    ):
        file.write_text(f"{line}\nGCC version:  gcc version 12.2.0\n")
        assert driver_version(file) == "535.161.08"


def test_versions_that_are_bad_or_not_allowed_are_named_with_better_ones() -> None:
    from packaging.requirements import Requirement

    known = (("numpy", ">=1", "is slow", "==0.9"), ("numpy", "<1", "is old", "==2"), ("no-such-package", ">0", "", ""))
    (finding,) = known_problems(known)
    assert (finding.found, finding.fix) == ("is slow", "pip install 'numpy==0.9'")
    assert problem_of(Requirement("no-such-package")) == "not installed"
    assert problem_of(Requirement("numpy<1")).endswith(", not <1")
    assert problem_of(Requirement("numpy")) == ""


def test_who_cannot_install_a_package_is_told_who_can(tmp_path: Path) -> None:
    assert by_pip("ript-ray", tmp_path) == "pip install ript-ray"
    nowhere = tmp_path / "none"  # root may write to whatever is there
    assert by_pip("ript-ray", nowhere).startswith(f"pip install ript-ray, by a user who can write to {nowhere}; ")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("assets: {folder}\ndatasets: /nowhere\n", ""),
        ("assets: /nowhere\n", "there is no assets: /nowhere"),
        ("- a list", "cannot be read"),
        ("a: [", "cannot be read"),
    ],
)
def test_liberos_file_must_name_paths_that_are_there(content: str, found: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content.format(folder=tmp_path))
    finding = configuration(file)
    assert found in finding.found
    assert finding.good == (not found)
