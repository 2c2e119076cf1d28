"""A tiny OpenVLA-OFT in LIBERO's simulator on Ray, by its launcher: killed, resumed and replayed to the same bits."""

import signal
import sys
from pathlib import Path

import pytest

from experiments import openvla_oft_libero
from ript_ray.runs.rollout_log import GroupRecord, read_groups
from tests.commands import only_folder, preset_here, ript_ray_here, run
from tests.oft_fixture import CHECKPOINT
from tests.openvla_oft_fixture import SCALE_HEAD
from tests.ript_ray.cli.test_main import text_of

pytestmark = [pytest.mark.ray, pytest.mark.sim, pytest.mark.cli]

PLUGIN = ("--plugin", "tests.turning:Turning")
TINY = (
    *("goal-released-code", *PLUGIN, "--benchmark.kind", "turning", "--tasks", "turn_on_the_stove"),
    *("--policy.checkpoint", str(CHECKPOINT), "--policy.scale-head", str(SCALE_HEAD), "--max-steps", "12"),
    *("--sampling.group-size", "4", "--sampling.batch-rollouts", "4", "--sampling.contexts-per-task", "2"),
    *("--sampling.context-source", "None", "--ppo.minibatch-rollouts", "2", "--ppo.micro-batch-decisions", "3"),
    *("--evaluation.contexts-per-task", "1", "--num-updates", "2", "--view", "lines", "--trackers"),
)
LAST = Path("checkpoints") / "update-00002"

DIE_IN_UPDATE_2 = """
import os, signal, sys
from pathlib import Path

def watch(event, arguments):
    if event == "os.rename" and "kept-groups" in str(arguments[0]) and str(arguments[0]).endswith(".json.unfinished"):
        if Path("runs/openvla-oft-goal/latest/weights/update-00001.safetensors").exists():
            os.kill(os.getpid(), signal.SIGKILL)

from experiments import openvla_oft_libero
from ript_ray.cli.launch import launch_preset
sys.addaudithook(watch)
launch_preset(openvla_oft_libero.PRESETS, "")
"""


def groups_of(folder: Path) -> list[GroupRecord]:
    return sorted(read_groups(folder / "groups.jsonl"), key=lambda record: record.group)


def test_a_run_on_ray_killed_in_its_second_update_resumes_and_replays_to_the_bits_of_one_in_a_single_process(
    tmp_path: Path,
) -> None:
    undisturbed_home, home = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed_home.mkdir()
    home.mkdir()
    result = preset_here(openvla_oft_libero, *TINY, "--cluster.in-process", cwd=undisturbed_home)
    assert result.returncode == 0, text_of(result)
    undisturbed = only_folder(undisturbed_home / "runs" / "openvla-oft-goal")

    ended = run(sys.executable, "-c", DIE_IN_UPDATE_2, *TINY, "--cluster.num-actors", "2", cwd=home)
    assert ended.returncode == -signal.SIGKILL, text_of(ended)
    assert "2 updates on 2 rollout actors" in ended.stdout
    killed = only_folder(home / "runs" / "openvla-oft-goal")
    assert not (killed / LAST).exists()

    result = ript_ray_here("resume", str(killed), "--cluster.in-process", "--view", "lines", *PLUGIN, cwd=home)
    assert result.returncode == 0, text_of(result)
    for name in ("policy.safetensors", "learner.safetensors"):
        assert (killed / LAST / name).read_bytes() == (undisturbed / LAST / name).read_bytes(), name
    groups = groups_of(killed)
    assert groups == groups_of(undisturbed)
    last = groups[-1]
    assert last.version == 1, "trained through LoRA before it acted"
    result = ript_ray_here("replay", str(killed), "--group", str(last.group), "--member", "3", *PLUGIN, cwd=home)
    assert result.returncode == 0, text_of(result)
    ending = "success" if last.successes[3] else "failure"
    assert f"{ending} after {last.num_steps[3]} steps, as recorded" in text_of(result)
