"""The package as it is imported."""

import json
import subprocess
import sys

import ript_ray
from tests.commands import environment

HEAVY = ("torch", "ray", "mujoco", "metaworld", "scipy", "mlflow", "numpy")


def run_python(code: str) -> str:
    """Run code in a fresh process, without the setting that this one has."""
    own = {name: value for name, value in environment().items() if name != "OMP_WAIT_POLICY"}
    return subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=True).stdout


def test_importing_the_package_imports_nothing_heavy_and_sets_no_environment_variable() -> None:
    code = (
        "import json, os, sys; before = dict(os.environ)\n"
        "import ript_ray\n"
        f"print(json.dumps([[name for name in {HEAVY} if name in sys.modules], dict(os.environ) == before]))"
    )
    assert json.loads(run_python(code)) == [[], True]


def test_everything_that_the_package_offers_is_there_and_documented() -> None:
    for name in ript_ray.__all__:
        assert getattr(ript_ray, name).__doc__, name


def test_a_command_makes_threads_sleep_while_they_wait_before_torch_is_imported() -> None:
    code = (
        "import os, sys\n"
        "from ript_ray.cli.launch import run_command\n"
        "def command():\n"
        "    print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)\n"
        "    return 0\n"
        "run_command(command)"
    )
    assert run_python(code).split() == ["PASSIVE", "False"]
