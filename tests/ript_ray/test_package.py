import subprocess
import sys

from tests.commands import environment


def test_threads_of_torch_sleep_while_they_wait_wherever_the_package_comes_first() -> None:
    code = "import os, ript_ray.cli.launch, torch; print(os.environ['OMP_WAIT_POLICY'])"
    own = {name: value for name, value in environment().items() if name != "OMP_WAIT_POLICY"}
    result = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "PASSIVE"
