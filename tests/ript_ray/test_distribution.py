"""What is published: the wheel and the sdist, and what each extra brings."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.clean_environment import make_environment

pytestmark = pytest.mark.cli

ROOT = Path(__file__).parents[2]


def build(source: Path, out: Path) -> tuple[Path, Path]:
    """Build the wheel and the sdist of a folder."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def run_in(folder: Path, *command: Path | str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command of a clean environment in a folder."""
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
    own |= {"COLUMNS": "120"}
    return subprocess.run(
        command, cwd=folder, env=own, input=stdin, capture_output=True, text=True, timeout=840, check=False
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def commands(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment that holds ript-ray without extras."""
    return make_environment(tmp_path_factory.mktemp("clean") / "environment", built[0])


def test_a_build_of_the_sdist_gives_the_same_bytes_as_one_of_the_checkout(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    wheel, sdist = built
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    for path in source.rglob("*"):
        path.touch()  # another time, as in another checkout
    again = build(source, tmp_path / "dist")
    assert [path.name for path in again] == [wheel.name, sdist.name]
    assert [path.read_bytes() for path in again] == [wheel.read_bytes(), sdist.read_bytes()]


def test_the_wheel_holds_both_typed_packages_and_nothing_else(built: tuple[Path, Path]) -> None:
    archive = zipfile.ZipFile(built[0])
    names = archive.namelist()
    assert {"ript_ray/py.typed", "ript_envs/py.typed"} <= set(names)
    (about,) = {top for name in names if (top := name.split("/")[0]).endswith(".dist-info")}
    assert {name.split("/")[0] for name in names} == {"ript_ray", "ript_envs", about}
    assert f"{about}/licenses/LICENSE" in names
    assert b"ript-ray = ript_ray.__main__:main" in archive.read(f"{about}/entry_points.txt")


def test_the_sdist_holds_sources_tests_and_documents_and_no_path_of_this_machine(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {member.name.split("/", 1)[-1] for member in archive}
        for wanted in ("ript_ray/py.typed", "tests/conftest.py", "constraints.txt", ".ci/run", "docs/extending.md"):
            assert wanted in names
        for member in archive:
            content = archive.extractfile(member)
            assert content is None or str(ROOT).encode() not in content.read(), member.name


LAUNCH_ALL = """
import runpy, sys
for number, line in enumerate(sys.stdin):
    sys.argv = line.split()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        print(f"{number}: exit code {end.code}", file=sys.stderr)
"""

SMALL = "--num-updates 1 --sft.regression.num-steps 20 --evaluation.contexts-per-task 2 --cluster.in-process"

LIBERO = """
from dataclasses import replace
from quickstart import EXPERIMENT, POLICY
from ript_envs.libero.benchmark import Libero
from ript_ray.cli.launch import launch

libero, policy = Libero(suite="libero_goal"), replace(POLICY, sensors=("ee_pos",))
launch(replace(EXPERIMENT, tasks=libero.tasks[:1], benchmark=libero, policy=policy), "")
"""

OPENVLA = """
from ript_envs.libero.benchmark import Libero
from ript_ray.cli.entrypoint import run_command
from ript_ray.policies.openvla_oft.config import OpenVLAOFTConfig

run_command(lambda: OpenVLAOFTConfig(base="new").build(Libero().spec))
"""


def test_without_extras_the_commands_and_a_launcher_of_ones_own_run_and_others_say_what_to_install(
    commands: Path, tmp_path: Path
) -> None:
    for name in ("extending", "quickstart"):  # outside of the checkout they are launchers of one's own
        shutil.copy(ROOT / "experiments" / f"{name}.py", tmp_path)
    (tmp_path / "goal.py").write_text(LIBERO)
    (tmp_path / "openvla.py").write_text(OPENVLA)
    command = str(commands / "ript-ray")
    lines = (
        f"extending.py {SMALL}",
        f"{command} runs",
        f"{command} summarize --help",
        f"{command} demos metaworld --task reach-v3",
        f"{command} embed-text --instructions word --out words.safetensors",
        "quickstart.py --cluster.in-process",
        "goal.py --cluster.in-process",
        "openvla.py",
    )
    shown = run_in(tmp_path, commands / "python", "-c", LAUNCH_ALL, stdin="\n".join(lines))
    assert (tmp_path / "runs" / "extending" / "latest" / "results.json").is_file()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["extending"], (
        "nothing is written where it cannot run"
    )
    assert shown.stderr.splitlines() == [
        *("0: exit code 0", "1: exit code 0", "2: exit code 0"),
        "error: MetaWorld is not installed; pip install 'ript-ray[metaworld]'",
        "3: exit code 2",
        "error: transformers is not installed; pip install 'ript-ray[clip]'",
        "4: exit code 2",
        "error: MetaWorld is not installed; pip install 'ript-ray[metaworld]'",
        "5: exit code 2",
        "error: LIBERO is not installed; pip install 'ript-ray[libero]'",
        "6: exit code 2",
        "error: transformers is not installed; pip install 'ript-ray[openvla]'",
        "7: exit code 2",
    ]


def test_without_extras_the_doctor_finds_all_that_ript_ray_itself_needs(commands: Path, tmp_path: Path) -> None:
    shown = run_in(tmp_path, commands / "ript-ray", "doctor")
    assert "torch" in shown.stdout
    assert "Traceback" not in shown.stderr
    assert not [line for line in shown.stdout.splitlines() if "not installed" in line and "missing" in line]
    for extra in ("metaworld", "libero", "clip", "openvla"):
        assert f"pip install 'ript-ray[{extra}]'" in shown.stdout
    (egl,) = [line for line in shown.stdout.splitlines() if re.search(r"^\w+ +EGL ", line)]
    assert "MuJoCo, which renders, is not installed  pip install 'ript-ray[metaworld]'" in egl
    assert "extra all" not in shown.stdout, "it names nothing that the others do not"
