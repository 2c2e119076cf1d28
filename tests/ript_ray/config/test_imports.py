"""Configuration files and --help must be readable without loading simulators or model libraries."""

import subprocess
import sys

from tests.commands import environment

HEAVY = ("torch", "transformers", "mujoco", "metaworld", "ray", "scipy", "h5py", "matplotlib", "mlflow")


def test_configurations_are_read_without_importing_simulators_or_model_libraries() -> None:
    code = f"""
import sys
from ript_ray.config.experiment import Experiment
from ript_ray.config.serialization import to_json
to_json(Experiment("name", ("reach-v3",)))
print([name for name in {HEAVY} if name in sys.modules])
"""
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False
    )
    assert (result.stdout.strip(), result.stderr) == ("[]", "")
