"""The commands as a user types them: exit codes, what is printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ript_ray
from tests.commands import QUICKSTART, quickstart_here, ript_ray_here, run

pytestmark = pytest.mark.cli


def text_of(result: subprocess.CompletedProcess[str]) -> str:
    """Everything printed, without the frames and line breaks that fit it to the terminal."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", result.stdout + result.stderr)


BAD_LAUNCHES = {
    "an unknown option": (["--ppo.clip-lo", "0.1"], "--ppo.clip-low"),
    "a value out of range": (["--ppo.clip-low", "1.5"], "clip-low must be above 0 and below 1, not 1.5"),
    "a value that is no number": (["--ppo.clip-low", "small"], "--ppo.clip-low"),
    "a group of one": (
        ["--sampling.group-size", "1", "--sampling.batch-rollouts", "8"],
        "(K) must be at least 2, not 1",
    ),
    "a batch that K does not divide": (["--sampling.batch-rollouts", "90"], "multiple of the group size 8, not 90"),
    "a wrong task": (["--tasks", "drawr-open-v3"], "did you mean drawer-open-v3"),
    "too many actors": (["--cluster.num-actors", "999"], "999 rollout actors"),
}


@pytest.mark.parametrize("case", BAD_LAUNCHES)
def test_a_bad_launch_is_refused_immediately_by_name_without_traceback(case: str, tmp_path: Path) -> None:
    arguments, message = BAD_LAUNCHES[case]
    result = quickstart_here(*arguments, cwd=tmp_path)
    assert result.returncode != 0
    assert message in text_of(result)
    assert "Traceback" not in text_of(result)
    assert list(tmp_path.iterdir()) == [], "nothing may be written before a launch is accepted"


def test_help_explains_fields_with_range_and_source(tmp_path: Path) -> None:
    result = run(*QUICKSTART, "--help", cwd=tmp_path)  # a process of its own, as are those of other files
    assert result.returncode == 0
    text = text_of(result)
    for part in ("Question:", "--ppo.clip-low", "above 0 and below 1", "--cluster.num-actors", "--seed", "--view"):
        assert part in text


BAD_EVALUATIONS = {
    "nothing there": (["nowhere"], "there is nothing at nowhere"),
    "a foreign folder": (["foreign"], "neither a checkpoint nor a run folder"),
    "a foreign file": (["foreign/model.pth"], "neither a checkpoint nor a run folder"),
    "an output that exists": (["foreign", "--out", "foreign/model.pth"], "exists already"),
    "no argument": ([], "A checkpoint, or a run's folder"),
}


@pytest.mark.parametrize("case", BAD_EVALUATIONS)
def test_a_bad_evaluation_is_refused_by_name_without_traceback(case: str, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "model.pth").write_bytes(b"\x80\x04K\x01.")
    arguments, message = BAD_EVALUATIONS[case]
    result = ript_ray_here("evaluate", *arguments, cwd=tmp_path)
    assert result.returncode != 0
    assert message in text_of(result)
    assert "Traceback" not in text_of(result)
    assert (tmp_path / "foreign" / "model.pth").read_bytes() == b"\x80\x04K\x01."


@pytest.mark.cli
def test_the_module_is_the_command_and_names_its_version(tmp_path: Path) -> None:
    result = run(sys.executable, "-m", "ript_ray", "--version", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, f"ript-ray {ript_ray.__version__}\n")
