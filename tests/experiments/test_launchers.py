"""The launchers as modules and as commands."""

import re
import sys
from pathlib import Path

import pytest

from experiments import pixels, quickstart
from tests.commands import ROOT, run


def test_pixels_is_the_quickstart_except_for_what_its_policy_sees_and_learns_from() -> None:
    differing = {
        name for name, value in vars(quickstart.EXPERIMENT).items() if value != getattr(pixels.EXPERIMENT, name)
    }
    assert differing == {"name", "tasks", "benchmark", "policy", "demos", "sft", "evaluation"}
    assert pixels.EXPERIMENT.policy.cameras == ("corner_rgb",)


def test_a_launcher_names_headings_of_the_readme_that_exist() -> None:
    headings = re.findall(r"^#+ (.+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    named = [re.findall(r'README, "([^"]+)"', path.read_text()) for path in (ROOT / "experiments").glob("*.py")]
    assert not {heading for found in named for heading in found} - set(headings)


@pytest.mark.cli
@pytest.mark.parametrize(
    "launcher", [("-m", "experiments.pixels"), (str(ROOT / "experiments" / "quickstart.py"),)], ids=["module", "script"]
)
def test_a_launcher_is_a_command_whose_help_states_its_question(launcher: tuple[str, ...], tmp_path: Path) -> None:
    result = run(sys.executable, *launcher, "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: {'python ' if launcher[0] == '-m' else ''}{' '.join(launcher)} ")
    assert max(map(len, result.stdout.splitlines())) <= 120
    assert "Question:" in result.stdout
    assert "--ppo.clip-high" in result.stdout
    assert list(tmp_path.iterdir()) == []
