"""`ript-ray check-policy` and `check-benchmark`: what is named, what is printed, exit codes."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.commands import RIPT_RAY, ript_ray_here, run

pytestmark = pytest.mark.cli

PLUGIN = """
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from ript_envs.contract import Benchmark, EnvironmentSpec, require_task
from ript_ray.policies.base import PolicyConfig
from ript_ray.policies.quest.config import QuestConfig

SMALL = QuestConfig(
    sensors=("position",), chunk_length=4, num_executed=2, fsq_levels=(3, 3), skill_width=16, skill_layers=(1, 1),
    prior_width=16, prior_layers=1, prior_heads=2, state_width=8, text_features=16, dropout=0.0,
)
KNOWING = replace(SMALL, task_input="index", instructions=("go left", "go right"))


@dataclass(frozen=True)
class Empty(PolicyConfig):
    size: int
    cameras: tuple[str, ...] = ()
    sensors: tuple[str, ...] = ("position",)
    chunk_length: int = 4
    kind: Literal["empty"] = field(default="empty", kw_only=True)

    def build(self, spec):
        raise RuntimeError("no [weights]")


class Environment:
    def reset(self, initial_state):
        self.position, self.goal = initial_state

    def step(self, action):
        self.position += 0.01 * float(self.limited(action)[0])
        return bool(abs(self.position - self.goal) < 0.01)

    def limited(self, action):
        return np.clip(action, -1, 1)

    def observe(self):
        return {"position": np.array([self.position, self.goal], np.float32)}

    def close(self):
        pass


class Wild(Environment):
    def limited(self, action):
        return action


@dataclass(frozen=True)
class Line(Benchmark):
    kind: Literal["line"] = field(default="line", kw_only=True)
    wild: bool = False

    spec = EnvironmentSpec("the line", 1, {"position": 2})
    tasks = ("left", "right")

    def instruction(self, task):
        require_task(task, self.tasks, "the line")
        return f"go {task}"

    def make(self, task):
        require_task(task, self.tasks, "the line")
        return Wild() if self.wild else Environment()

    def draw_initial_state(self, task, seed):
        require_task(task, self.tasks, "the line")
        return np.random.default_rng(seed).uniform(-1, 1, 2)


WILD = Line(wild=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with a module of a user."""
    (tmp_path / "own_plugin.py").write_text(PLUGIN)
    return tmp_path


def text_of(result: subprocess.CompletedProcess[str]) -> str:
    """Everything printed, without the frames and line breaks that fit it to the terminal."""
    return re.sub(r"[\s│┃━─┏┳┓┡╇┩└┴┘]+", " ", result.stdout + result.stderr)


def test_a_module_in_the_current_directory_is_checked_by_class_and_by_instance(folder: Path) -> None:
    result = run(*RIPT_RAY, "check-benchmark", "own_plugin:Line", "--task", "right", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert re.search(r"all \d+ checks passed", text_of(result))
    result = ript_ray_here("check-policy", "own_plugin:SMALL", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "conformance of own_plugin:SMALL for a made-up benchmark" in text_of(result)


def test_a_policy_is_checked_with_the_sizes_and_instructions_of_a_benchmark(folder: Path) -> None:
    result = ript_ray_here("check-policy", "own_plugin:KNOWING", "--benchmark", "own_plugin:Line", cwd=folder)
    assert result.returncode == 0, result.stdout
    assert "for the line" in text_of(result)
    result = ript_ray_here("check-policy", "own_plugin:KNOWING", "--instructions", "go left", cwd=folder)
    assert result.returncode == 0, result.stdout
    result = ript_ray_here("check-policy", "own_plugin:KNOWING", cwd=folder)
    assert result.returncode == 1
    assert "does not know the instruction" in text_of(result)


def test_a_failed_check_is_named_with_its_reason_and_the_exit_code_is_1(folder: Path) -> None:
    result = ript_ray_here("check-benchmark", "own_plugin:WILD", cwd=folder)
    assert result.returncode == 1
    text = text_of(result)
    assert "failed step clips actions to [-1, 1]" in text
    assert re.search(r"1 of \d+ checks failed, 0 were not checked", text)


def test_what_a_plugin_raises_is_printed_as_it_is_and_what_needs_it_is_not_checked(folder: Path) -> None:
    with (folder / "own_plugin.py").open("a") as plugin:
        plugin.write("\nEMPTY = Empty(size=3)\n")  # another process: this one has imported the module
    result = run(*RIPT_RAY, "check-policy", "own_plugin:EMPTY", cwd=folder)
    assert result.returncode == 1
    text = text_of(result)
    assert "failed build returns a policy" in text
    assert "RuntimeError: no [weights]" in text
    assert "not checked: it needs" in text
    assert "Traceback" not in text


@pytest.mark.sim
def test_the_known_kinds_pass(tmp_path: Path) -> None:
    for command in (("check-benchmark", "metaworld"), ("check-policy", "quest", "--benchmark", "metaworld")):
        result = ript_ray_here(*command, cwd=tmp_path)
        assert result.returncode == 0, result.stdout


BAD_NAMES = {
    "an unknown kind": (["check-policy", "qest"], "policy.kind 'qest' is unknown"),
    "no such module": (["check-policy", "own_plugn:SMALL"], "own_plugn:SMALL cannot be imported"),
    "a benchmark for a policy": (
        ["check-policy", "own_plugin:Line"],
        "own_plugin:Line must be a PolicyConfig: a class derived from it, or an instance, not <class",
    ),
    "a policy for a benchmark": (["check-benchmark", "own_plugin:SMALL"], "own_plugin:SMALL must be a Benchmark"),
    "a class without defaults": (
        ["check-policy", "own_plugin:Empty"],
        "own_plugin:Empty cannot be built with its defaults: TypeError",
    ),
    "no such task": (
        ["check-benchmark", "own_plugin:Line", "--task", "lft"],
        "Line has no task 'lft': did you mean left?",
    ),
}


@pytest.mark.parametrize("case", BAD_NAMES)
def test_what_cannot_be_checked_is_refused_by_name_without_traceback(case: str, folder: Path) -> None:
    arguments, message = BAD_NAMES[case]
    result = ript_ray_here(*arguments, cwd=folder)
    assert result.returncode == 2
    assert message in text_of(result)
    assert "Traceback" not in text_of(result)
