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


def test_a_launcher_names_pages_that_exist() -> None:
    named = [re.findall(r"docs/[\w/.-]+\.md", path.read_text()) for path in (ROOT / "experiments").glob("*.py")]
    assert {page for found in named for page in found}
    assert [page for found in named for page in found if not (ROOT / page).exists()] == []


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
