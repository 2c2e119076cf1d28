"""A job of clusters/slurm as Slurm runs it: head, worker, time limit, requeue. Stand-ins for what Slurm brings."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.extending import EXPERIMENT
from ript_ray.pipeline import run_experiment
from ript_ray.runs import checkpoint
from ript_ray.runtime.cluster import Cluster
from ript_ray.tracking.console import View
from ript_ray.tracking.logs import ViewMode
from tests.commands import ROOT, environment, only_folder

SCRIPT = ROOT / "clusters" / "slurm" / "run.sbatch"
STAND_IN = ROOT / "tests" / "clusters" / "slurm_stand_in"
SHELL_SCRIPTS = [*sorted((ROOT / "clusters").rglob("*.sh")), SCRIPT, *sorted(STAND_IN.iterdir())]
NUM_UPDATES = 40
TINY = replace(
    EXPERIMENT,
    num_updates=NUM_UPDATES,
    checkpoint_every=NUM_UPDATES,
    sampling=replace(EXPERIMENT.sampling, batch_rollouts=16),
    evaluation=replace(EXPERIMENT.evaluation, contexts_per_task=2),
)
TINY_OPTIONS = (
    *("--num-updates", str(NUM_UPDATES), "--checkpoint-every", str(NUM_UPDATES)),
    *("--sampling.batch-rollouts", "16", "--evaluation.contexts-per-task", "2"),
)
DEADLINE_S = 800.0


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_have_no_mistake_that_a_checker_knows(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    checked = subprocess.run([shellcheck, "-x", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.stdout == ""


def documented() -> list[str]:
    """Return the first job of clusters/README.md's Slurm section, without sbatch's options, with a small experiment."""
    (line,) = re.findall(
        r"^    sbatch --nodes 4 .*?(clusters/slurm/.*)$", (ROOT / "clusters/README.md").read_text(), re.M
    )
    return [*shlex.split(line.replace("experiments.quickstart", "experiments.extending")), *TINY_OPTIONS]


class Job:
    """What sbatch does here: runs the script in a folder as on the first of two nodes of one core each."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "clusters").symlink_to(ROOT / "clusters")
        own = {name: value for name, value in environment().items() if not name.startswith("RAY_")}
        self._environment = own | {
            "PATH": os.pathsep.join([str(STAND_IN), str(Path(sys.executable).parent), own["PATH"]]),
            "STAND_IN": str(folder),
            "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "100000000",
            "SLURM_JOB_ID": "4242",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_ON_NODE": "1",
        }

    @property
    def calls(self) -> str:
        """What srun and scontrol were called with."""
        return (self.folder / "calls").read_text()

    def run(self, *, limit_at: str | None = None) -> tuple[int, str]:
        """Run the job until it ends; returns its exit code and its output.

        Args:
            limit_at: A text in the output at which the time limit is near.
        """
        with subprocess.Popen(
            ["bash", *documented()],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            watch = threading.Timer(DEADLINE_S, process.terminate)
            watch.start()
            output = ""
            assert process.stdout is not None
            for line in process.stdout:
                output += line
                if limit_at is not None and limit_at in line:
                    process.send_signal(signal.SIGUSR1)  # as `#SBATCH --signal=B:USR1@300` asks for
                    limit_at = None
            code = process.wait(timeout=60)
            watch.cancel()
        print(output)
        return code, output


@pytest.mark.ray
@pytest.mark.cli
@pytest.mark.usefixtures("store")
def test_a_job_that_meets_its_time_limit_is_queued_again_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    run_experiment(TINY, Cluster(in_process=True), runs=tmp_path / "undisturbed", view=View(ViewMode.QUIET, 1))
    (tmp_path / "job").mkdir()
    job = Job(tmp_path / "job")

    code, output = job.run(limit_at="update 1, ")
    assert code != 0
    assert "2 nodes: " in output
    assert "time limit: the run is saved, the job is queued again" in output
    step = r"srun --relative=1 --nodes=1 --ntasks=1 .*clusters/slurm/node.sh .*"
    assert re.fullmatch(rf"{step}\nscontrol requeue 4242\n", job.calls)
    stopped = only_folder(job.folder / "runs" / "extending")
    assert stopped.name.endswith("-seed0-long")
    assert "update-00001" <= checkpoint.latest_valid(stopped).folder.name < f"update-{NUM_UPDATES:05d}"

    code, output = job.run()
    assert (code, "resuming from" in output) == (0, True)
    assert only_folder(job.folder / "runs" / "extending") == stopped
    last = Path("checkpoints") / f"update-{NUM_UPDATES:05d}"
    for name in ("policy.safetensors", "learner.safetensors"):
        undisturbed = only_folder(tmp_path / "undisturbed" / "extending") / last / name
        assert (stopped / last / name).read_bytes() == undisturbed.read_bytes(), name
    assert not list((job.folder / ".slurm").iterdir()), "tokens are removed"
