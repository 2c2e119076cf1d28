"""The project's commands as processes of their own, from the sources of this checkout."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUICKSTART = (sys.executable, str(ROOT / "experiments" / "quickstart.py"))
RIPT_RAY = (sys.executable, "-c", "from ript_ray.cli import main; main()")


def environment() -> dict[str, str]:
    """This process's own, with the sources importable and MLflow's default store."""
    own = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'envs'}", "COLUMNS": "120"}
    own.pop("MLFLOW_TRACKING_URI", None)
    return own


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, within 280 s."""
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=280, check=False)
