"""The Dockerfile: what it promises, read from its text, and a real build of it where there is a builder."""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ript_envs.gl import LIBRARIES, system_libraries

ROOT = Path(__file__).parents[1]
LIST = "envs/ript_envs/system_libraries.txt"


def instructions() -> list[tuple[str, str]]:
    """Every instruction of the Dockerfile, and what it says."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in whole.splitlines() if line)]


def said(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def test_the_image_is_one_base_its_packages_and_the_sources() -> None:
    assert said("FROM") == ["${IMAGE} AS base", "base AS packages", "packages AS cpu", "cpu AS gpu"]
    assert "IMAGE=debian:bookworm-slim" in said("ARG")


def test_a_change_of_the_sources_installs_no_package_again() -> None:
    layers = [f"{word} {rest}" for word, rest in instructions() if word in ("COPY", "RUN")]
    sources = layers.index("COPY . ./")
    assert layers[0] == f"COPY {LIST} /tmp/"
    (packages,) = (index for index, layer in enumerate(layers) if "-c constraints.txt" in layer)
    assert [layer for layer in layers[1:packages] if layer.startswith("COPY")] == [
        "COPY pyproject.toml constraints.txt ./"
    ]
    assert packages < sources
    assert all("--no-deps" in layer for layer in layers[sources + 1 :] if "pip install" in layer)


def test_the_image_runs_as_another_user_than_root_and_tells_its_health() -> None:
    (user,) = said("USER")
    assert re.fullmatch(r"[1-9]\d*", user), "Kubernetes trusts numbers only"
    assert said("HEALTHCHECK")[0].endswith('CMD ["ript-ray", "doctor"]')


def test_system_libraries_are_named_in_one_list() -> None:
    libraries = system_libraries()
    assert set(LIBRARIES.values()) <= set(libraries)
    for name in ("Dockerfile", ".ci/run"):
        text = (ROOT / name).read_text()
        assert LIST in text
        assert not [package for package in libraries.values() if package in text], name


def test_no_registry_or_package_index_is_named() -> None:
    assert "://" not in (ROOT / "Dockerfile").read_text()
    assert {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"} <= set(said("ARG")), "they have no value"


def test_the_image_is_built_from_nothing_but_what_is_listed() -> None:
    ignored, *allowed = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert ignored == "*"  # runs, .venv and .git with it
    listed = [line.removeprefix("!") for line in allowed if line.startswith("!")]
    assert all((ROOT / name).exists() for name in listed)
    assert {"ript_ray", "envs", "experiments", "pyproject.toml", "constraints.txt"} <= set(listed)
    assert {"**/__pycache__", "**/*.egg-info"} == set(allowed) - {f"!{name}" for name in listed}


def test_the_dockerfile_has_no_mistake_that_a_checker_knows() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed; CI runs it")
    checked = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


ONE_UPDATE = (
    *("python", "-m", "experiments.quickstart", "--view", "lines", "--num-updates", "1"),
    *("--sampling.contexts-per-task", "8", "--evaluation.contexts-per-task", "2"),
)
OPTIONS = "IMAGE_BUILD_OPTIONS"
"""The environment variable with a builder's options for this machine, such as --build-arg PIP_EXTRA_INDEX_URL=..."""


def works(program: str) -> bool:
    """Whether a builder is installed, and its daemon runs if it has one."""
    found = shutil.which(program)
    return found is not None and subprocess.run([found, "info"], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def image(tag: str) -> Iterator[list[str]]:
    """Build the image for CPUs; the start of a command that runs others in it."""
    program = next(filter(works, ("docker", "podman", "buildah")), "")
    if not program:
        pytest.skip("none of docker, podman and buildah works here")
    options = shlex.split(os.environ.get(OPTIONS, ""))
    if program != "docker":
        options += ["--format", "docker"]
    subprocess.run([program, "build", "--target", "cpu", "--tag", tag, *options, "."], cwd=ROOT, check=True)
    if program != "buildah":
        yield [program, "run", "--rm", "--init", "--shm-size=2g", tag]
        return
    container = subprocess.run([program, "from", tag], check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield [program, "run", container, "--"]
    finally:
        subprocess.run([program, "rm", container], check=True)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_image_is_built_and_its_user_runs_the_quickstart_for_one_update() -> None:
    with image("ript-ray:test") as run:
        assert subprocess.run([*run, "id", "-u"], check=True, capture_output=True, text=True).stdout == "1000\n"
        checked = subprocess.run([*run, "ript-ray", "doctor", "--json"], check=True, capture_output=True, text=True)
        findings = {row["thing"]: row for row in json.loads(checked.stdout)["findings"]}
        assert {name: findings[name]["mark"] for name in system_libraries()} == dict.fromkeys(system_libraries(), "ok")
        assert findings["extra aws"]["fix"].endswith("an image is built again (clusters/README.md)")
        subprocess.run([*run, *ONE_UPDATE], check=True)
