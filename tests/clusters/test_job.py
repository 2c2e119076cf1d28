"""Jobs as a user submits them: the shipped scripts, the README's command, a real head with a token."""

import contextlib
import os
import re
import shlex
import shutil
import signal
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
        address: Its own, which drivers and nodes join.
        environment: Environment of a user's shell before it sources anything.
    """

    folder: Path
    project: Path
    url: str
    address: str
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
        port, own_port = free_port(), free_port()
        options = ("--port", own_port, "--dashboard-port", port, "--temp-dir", str(folder / "ray"), "--block")
        own_ports = ("--dashboard-agent-listen-port", free_port(), "--ray-client-server-port", free_port())
        small = ("--num-cpus", "2", "--object-store-memory", "100000000")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        environment.pop("PYTHONPATH", None)  # what is imported must come from the job
        environment |= {
            "HOME": str(folder),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        }
        address = f"127.0.0.1:{own_port}"
        head = Head(folder, folder / "project", f"http://127.0.0.1:{port}", address, environment)
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


@pytest.mark.parametrize(
    ("own", "marks"),
    [
        ({"RAY_AUTH_MODE": "token"}, {"Ray's token": "ok", "RAY_ADDRESS": "ok"}),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, {"Ray's token": "ok", "RAY_ADDRESS": "error"}),
        ({"RAY_AUTH_MODE": "token", "HOME": "/nowhere"}, {"Ray's token": "error", "RAY_ADDRESS": "error"}),
        ({}, {"Ray's token": "ok", "RAY_ADDRESS": "error"}),
    ],
    ids=["the head's", "another", "none to send", "none sent"],
)
def test_the_doctor_asks_the_head_whether_it_takes_the_token(
    own: dict[str, str], marks: dict[str, str], head: Head
) -> None:
    code = (
        "from ript_ray.cli.doctor.cluster import cluster\n"
        "for each in cluster(): print(each.mark, each.thing, each.found, '' if each.good else each.fix, sep='|')"
    )
    environment = head.environment | {"RAY_ADDRESS": head.address, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'envs'}"}
    deadline, asked = time.monotonic() + 300, [sys.executable, "-c", code]
    while True:
        shown = subprocess.run(asked, env=environment | own, capture_output=True, text=True, timeout=800, check=False)
        if "|no Ray at " not in shown.stdout or time.monotonic() > deadline:  # a busy head answers too late
            break
    rows = {thing: (mark, rest) for mark, thing, *rest in (line.split("|") for line in shown.stdout.splitlines())}
    assert {thing: rows[thing][0] for thing in marks} == marks, shown.stdout + shown.stderr
    if marks["RAY_ADDRESS"] == "error":
        found, fix = rows["RAY_ADDRESS"][1]
        assert found == f"{head.address} refuses the token"
        assert "copy ~/.ray/auth_token of the head" in fix


def test_the_room_that_a_killed_driver_has_asked_for_is_given_up_by_hand(head: Head) -> None:
    code = (
        "import os, signal, ray\n"
        "from ript_ray.runtime.autoscaler import RoomRequest\n"
        "from ript_ray.runtime.cluster import Cluster\n"
        "ray.init('auto', logging_level='ERROR')\n"
        "RoomRequest(Cluster(address='auto', num_actors=7), 1).send()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    joined = f"RAY_ADDRESS={head.address} PYTHONPATH={ROOT}:{ROOT / 'envs'}"
    killed = head.ray(f"{joined} {shlex.join([sys.executable, '-c', code])}")
    assert killed.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), killed.stderr  # a shell may be in between
    await_status("7 from request_resources()", head)
    ended = head.ray(f"{joined} {documented('python -c')}")
    assert ended.returncode == 0, ended.stderr
    await_status("(none)", head)


def await_status(text: str, head: Head) -> None:
    """Wait until the autoscaler, which looks every few seconds, reports a text of requests."""
    deadline, report = time.monotonic() + 180, ""
    while text not in report:
        assert time.monotonic() < deadline, report
        status = head.ray(f"ray status --address {head.address}")
        report = status.stdout.partition("From request_resources:")[2].partition("Pending")[0]


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
