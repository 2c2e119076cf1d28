"""Jobs as a user submits them: the shipped scripts, the README's command, a real head with a token."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import RunInfo

from ript_ray.runs import checkpoint
from tests.commands import ROOT, only_folder

pytestmark = [pytest.mark.ray, pytest.mark.sim, pytest.mark.cli]

README = (ROOT / "clusters" / "README.md").read_text()
SHIPPED = ("ript_ray", "envs", "experiments", "clusters")
TINY = (
    *("--tasks", "faucet-open-v3", "--learner-threads", "1", "--cluster.num-actors", "1"),
    *("--sampling.batch-rollouts", "8", "--sampling.contexts-per-task", "6", "--checkpoint-every", "1"),
    *("--sft.autoencoder.num-steps", "150", "--sft.prior.num-steps", "80"),
    *("--evaluation.contexts-per-task", "2", "--evaluation.batch-size", "2"),
)
WHERE = """
import ray
import ript_envs, ript_ray

@ray.remote
def files():
    import ript_envs, ript_ray.rl.rollout_worker
    return ript_ray.__file__, ript_envs.__file__

ray.init(log_to_driver=False)
for place, found in {"driver": (ript_ray.__file__, ript_envs.__file__), "worker": ray.get(files.remote())}.items():
    print("found by the", place, *found)
"""


@dataclass(frozen=True)
class Head:
    """A head node for these tests.

    Attributes:
        folder: Folder of everything that it writes.
        project: The copy of the project that jobs are submitted from.
        url: Address of its dashboard.
        environment: Environment of a user's shell before it sources anything.
    """

    folder: Path
    project: Path
    url: str
    environment: dict[str, str]

    @property
    def shipped(self) -> Path:
        """Folder into which Ray unpacks the shipped sources of jobs."""
        return self.folder / "ray" / "session_latest" / "runtime_resources" / "working_dir_files"

    def shell(self, command: str, *options: str) -> list[str]:
        """Return a command of the README with its address and folder replaced by those of this test."""
        command = command.replace("http://localhost:8265", self.url).replace("/shared/runs", str(self.folder / "runs"))
        return ["sh", "-c", f'. clusters/environment.sh && {command} "$@"', "sh", *options]

    def ray(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run such a command and wait for it."""
        return subprocess.run(
            self.shell(command, *options),
            cwd=self.project,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )

    def logs(self, job: str) -> str:
        """Return the output of `ray job logs` for a job."""
        return self.ray(documented("ray job logs").replace("JOB", job)).stdout


def documented(start: str) -> str:
    """Return the one command of clusters/README.md that starts with `start`."""
    (command,) = re.findall(rf"^    ({re.escape(start)}.*)$", README, re.MULTILINE)
    return command


SUBMIT = documented("ray job submit")


def submit(name: str) -> str:
    """Return the README's command with a job name that the test can refer to."""
    return SUBMIT.replace("ray job submit", f"ray job submit --submission-id {name}")


def free_port() -> str:
    with socket.socket() as probe:  # above Ray's own range for workers, 10002 to 19999
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="ript-"))  # short: Ray puts sockets there, whose paths are limited
    try:
        for name in SHIPPED:
            shutil.copytree(ROOT / name, folder / "project" / name, ignore=shutil.ignore_patterns("__pycache__"))
        port = free_port()
        options = ("--port", free_port(), "--dashboard-port", port, "--temp-dir", str(folder / "ray"), "--block")
        own_ports = ("--dashboard-agent-listen-port", free_port(), "--ray-client-server-port", free_port())
        small = ("--num-cpus", "2", "--object-store-memory", "100000000")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        environment.pop("PYTHONPATH", None)  # what is imported must come from the job
        environment |= {
            "HOME": str(folder),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        }
        head = Head(folder, folder / "project", f"http://127.0.0.1:{port}", environment)
        with running([str(head.project / "clusters" / "local" / "head.sh"), *options, *own_ports, *small], head):
            yield head
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running(command: list[str], head: Head) -> Iterator[None]:
    """Start the head, wait until it responds, and stop it with all its child processes."""
    with (head.folder / "head.log").open("w") as log:
        process = psutil.Popen(command, cwd=head.project, env=head.environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 600
        while status_of(head.url) is None:
            assert process.poll() is None, (head.folder / "head.log").read_text()
            assert time.monotonic() < deadline, (head.folder / "head.log").read_text()
            time.sleep(0.2)
        yield
    finally:
        stop(process)


def stop(process: psutil.Popen) -> None:
    """Stop a node's processes as its machine would: by SIGTERM, and by SIGKILL if that is not enough."""
    if not process.is_running():
        return
    family = [process, *process.children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.terminate()
    _, left = psutil.wait_procs(family, timeout=30)
    for survivor in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            survivor.kill()
    psutil.wait_procs(left, timeout=30)


def status_of(url: str, token: str | None = None) -> int | None:
    """Return the status code of the response to a request; None if there is no response."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/api/jobs/", headers=headers), timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def test_without_the_token_nothing_is_answered_and_the_token_is_for_its_owner_alone(head: Head) -> None:
    token = head.folder / ".ray" / "auth_token"
    assert status_of(head.url) == 401
    assert status_of(head.url, token="0" * 64) == 403
    assert status_of(head.url, token=token.read_text()) == 200
    assert token.stat().st_mode & 0o777 == 0o600


def test_driver_and_workers_of_a_job_import_both_packages_from_what_was_shipped(head: Head) -> None:
    (head.project / "experiments" / "where.py").write_text(WHERE)
    result = head.ray(SUBMIT.split(" -- ")[0], "--", "python", "experiments/where.py")
    assert result.returncode == 0, result.stdout + result.stderr
    found = re.findall(r"^found by the (\w+) (\S+) (\S+)$", result.stdout, re.MULTILINE)
    assert [place for place, *_ in found] == ["driver", "worker"]
    for _, *files in found:
        assert all(Path(file).resolve().is_relative_to(head.shipped.resolve()) for file in files), files


def test_a_job_runs_an_experiment_and_its_results_outlive_it(head: Head) -> None:
    result = head.ray(submit("whole"), *TINY, "--num-updates", "1", "--name", "whole")
    assert result.returncode == 0, result.stdout + result.stderr
    for text in (result.stdout, head.logs("whole")):
        assert "update 1, success" in text
        assert "before RIPT, %" in text
    folder = only_folder(head.folder / "runs" / "whole")
    assert (folder / "results.json").exists()
    info = run_info_of("whole", head)
    assert info.run_name.startswith("seed0 name=whole tasks=faucet-open-v3 ")
    assert (info.run_name.endswith(folder.name[:15]), info.status) == (True, "FINISHED")


def test_a_job_with_a_bad_option_fails_and_says_why(head: Head) -> None:
    result = head.ray(submit("bad"), "--ppo.clip-hihg", "0.3")
    assert result.returncode == 1
    assert "--ppo.clip-high" in head.logs("bad")


def test_a_stopped_job_leaves_a_checkpoint_to_resume_from_and_no_process(head: Head) -> None:
    with subprocess.Popen(
        head.shell(submit("stopped"), *TINY, "--name", "stopped"),
        cwd=head.project,
        env=head.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as watched:
        assert watched.stdout is not None
        assert any("update 1, success" in line for line in watched.stdout), head.logs("stopped")
        assert processes_of_jobs(head)
        stopped = head.ray(documented("ray job stop").replace("JOB", "stopped"))
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    deadline = time.monotonic() + 300
    while processes_of_jobs(head):
        assert time.monotonic() < deadline, processes_of_jobs(head)
        time.sleep(0.1)
    folder = only_folder(head.folder / "runs" / "stopped")
    assert checkpoint.latest_valid(folder).folder.name >= "update-00001"
    assert run_info_of("stopped", head).status == "KILLED"
    assert "Traceback" not in head.logs("stopped")


def test_the_head_of_a_pod_stops_its_jobs_and_waits_for_their_last_words(head: Head) -> None:
    # clusters/kubernetes runs this before the pod ends.
    ends_well = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), print('saved'), exit()))"
    wait = "print('runs', flush=True); time.sleep(600)"
    job = ["-c", f"{ends_well}; {wait}"]
    submitted = head.ray(
        "ray job submit --address http://localhost:8265 --submission-id pod --no-wait --", "python", *job
    )
    assert submitted.returncode == 0, submitted.stderr
    deadline = time.monotonic() + 600
    while "runs" not in head.logs("pod"):
        assert time.monotonic() < deadline, head.logs("pod")
    stopped = head.ray("python clusters/kubernetes/stop_jobs.py http://localhost:8265")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "saved" in head.logs("pod")


def run_info_of(experiment: str, head: Head) -> RunInfo:
    """Return what MLflow knows of the experiment's only run."""
    client = MlflowClient(head.environment["MLFLOW_TRACKING_URI"])
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    return run.info


def processes_of_jobs(head: Head) -> list[str]:
    """Return the drivers and workers of jobs: processes whose working directory is shipped code."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(head.shipped.resolve()):
                found.append(" ".join(process.cmdline()))
    return found
