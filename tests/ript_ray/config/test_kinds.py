"""The registry of policies and benchmarks: built in, registered, or provided by installed packages."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from ript_envs.contract import EnvironmentSpec
from ript_ray.config.experiment import SFT_KINDS, Experiment, plugin_option
from ript_ray.config.kinds import Kinds
from ript_ray.errors import ConfigError
from ript_ray.policies.base import Policy, PolicyConfig
from ript_ray.policies.quest.config import QuestConfig, QuestSFT
from ript_ray.policies.supervised import NoSFT
from tests.commands import run
from tests.fakes import LineBenchmark


@dataclass(frozen=True)
class Mine(PolicyConfig):
    kind: Literal["mine"] = field(default="mine", kw_only=True)

    def build(self, spec: EnvironmentSpec) -> Policy:
        raise AssertionError("configurations are compared here, not built")


@dataclass(frozen=True)
class AnotherQuest(PolicyConfig):
    kind: Literal["quest"] = field(default="quest", kw_only=True)

    def build(self, spec: EnvironmentSpec) -> Policy:
        raise AssertionError("configurations are compared here, not built")


@dataclass(frozen=True)
class WithoutKind(PolicyConfig):
    def build(self, spec: EnvironmentSpec) -> Policy:
        raise AssertionError("configurations are compared here, not built")


@pytest.fixture
def kinds() -> Kinds[PolicyConfig]:
    """A registry like that of policies, but of this test alone."""
    return Kinds("policy", PolicyConfig, QuestConfig, entry_points="ript_ray.policies")


def test_an_unknown_kind_is_refused_with_the_known_ones_and_the_plugin_option(kinds: Kinds[PolicyConfig]) -> None:
    kinds.add(Mine)
    message = r"policy\.kind 'qest' is unknown; known are mine, quest; did you mean quest\?; .*--plugin MODULE:NAME"
    with pytest.raises(ConfigError, match=message):
        kinds.find("qest")
    with pytest.raises(ConfigError, match=r"policy\.kind must be one of mine, quest, not None"):
        kinds.find(None)


def test_a_registered_class_is_found_and_may_be_registered_again(kinds: Kinds[PolicyConfig]) -> None:
    kinds.add(Mine)
    kinds.add(Mine)
    assert kinds.find("mine") is Mine
    assert kinds.names() == ["mine", "quest"]


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (WithoutKind, r"test_kinds:WithoutKind needs a field `kind` with a default"),
        (
            AnotherQuest,
            r"policy\.kind 'quest' is taken by ript_ray\.policies\.quest\.config:QuestConfig; .*AnotherQuest",
        ),
        (LineBenchmark, r"LineBenchmark.* is not a policy: it is not derived from PolicyConfig"),
    ],
)
def test_a_class_without_a_kind_of_its_own_is_refused_by_name(
    kinds: Kinds[PolicyConfig], cls: type[PolicyConfig], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        kinds.add(cls)
    assert kinds.find("quest") is QuestConfig


def test_supervised_settings_are_found_by_the_kind_of_their_policy() -> None:
    assert (SFT_KINDS.find("quest"), SFT_KINDS.find("none")) == (QuestSFT, NoSFT)
    assert {"none", "quest"} <= set(SFT_KINDS.names())


PACKAGE = """
from dataclasses import dataclass, field
from typing import Literal

from ript_ray.policies.base import PolicyConfig


@dataclass(frozen=True)
class Fancy(PolicyConfig):
    kind: Literal["fancy"] = field(default="fancy", kw_only=True)

    def build(self, spec):
        raise NotImplementedError
"""


def install(site: Path, name: str, entry_points: str) -> None:
    """Do what pip does with a package: put its module and its metadata into a folder of sys.path."""
    (site / f"{name}.py").write_text(PACKAGE)
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_policy_of_an_installed_package_is_imported_only_when_its_kind_is_used(
    kinds: Kinds[PolicyConfig], site: Path
) -> None:
    install(site, "fancy_package", "[ript_ray.policies]\nfancy = fancy_package:Fancy\n")
    assert kinds.names() == ["fancy", "quest"]
    assert kinds.find("quest") is QuestConfig
    assert "fancy_package" not in sys.modules
    found = kinds.find("fancy")
    assert (found.__module__, found.__qualname__) == ("fancy_package", "Fancy")
    assert kinds.find("fancy") is found
    del sys.modules["fancy_package"]


def test_a_package_that_cannot_be_imported_is_named(kinds: Kinds[PolicyConfig], site: Path) -> None:
    install(site, "broken_package", "[ript_ray.policies]\nbroken = broken_package:Missing\n")
    with pytest.raises(ConfigError, match=r"policy\.kind broken: broken_package:Missing cannot be loaded"):
        kinds.find("broken")


@pytest.mark.parametrize("kind", ["on_path_only", "on_path_only:Fancy", "on_path_only.Fancy"])
def test_a_kind_that_no_package_provides_is_not_imported(kinds: Kinds[PolicyConfig], site: Path, kind: str) -> None:
    (site / "on_path_only.py").write_text("raise AssertionError('a file has made this process import a module')\n")
    with pytest.raises(ConfigError, match="is unknown"):
        kinds.find(kind)
    assert "on_path_only" not in sys.modules


def test_commands_about_kinds_of_ones_own_name_them_and_others_do_not() -> None:
    ours = Experiment("ours", ("reach-v3",))
    assert plugin_option(ours) == ""
    line = replace(ours, tasks=("left",), benchmark=LineBenchmark(), max_steps=LineBenchmark().spec.max_steps)
    both = replace(line, policy=Mine(), sft=NoSFT(), stages=("ript",))
    assert plugin_option(both) == f" --plugin tests.fakes:LineBenchmark {__name__}:Mine"


@pytest.mark.parametrize("name", ["mine.py", "folder/mine.py", "../mine.py"])
def test_kinds_of_a_launcher_are_named_by_its_file_as_plugin_finds_it(name: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "folder").mkdir(parents=True)
    (here / name).write_text(
        "from dataclasses import dataclass\n"
        "from typing import Literal\n"
        "from ript_envs.metaworld.benchmark import MetaWorld\n"
        "from ript_ray.config.experiment import Experiment, plugin_option\n"
        "@dataclass(frozen=True)\n"
        "class Own(MetaWorld):\n"
        "    kind: Literal['own'] = 'own'\n"
        "if __name__ == '__main__':\n"
        "    print(plugin_option(Experiment('mine', ('reach-v3',), benchmark=Own())))\n"
    )
    shown = run(sys.executable, name, cwd=here)
    module = {"mine.py": "mine", "folder/mine.py": "folder.mine", "../mine.py": "mine"}[name]
    assert shown.stdout == f" --plugin {module}:Own\n", shown.stderr
