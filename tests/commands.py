"""The project's commands, from the sources of this checkout: as processes of their own, or in this one."""

import contextlib
import io
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ript_ray.cli.main import main

ROOT = Path(__file__).parents[1]
QUICKSTART = (sys.executable, str(ROOT / "experiments" / "quickstart.py"))
RIPT_RAY = (sys.executable, "-c", "from ript_ray.cli.main import main; main()")


def environment() -> dict[str, str]:
    """This process's own, with the sources importable and MLflow's default store."""
    own = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'envs'}", "COLUMNS": "120"}
    own.pop("MLFLOW_TRACKING_URI", None)
    return own


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, within 280 s."""
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=280, check=False)


def quickstart_here(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The quickstart with these arguments in this process: a fresh one takes seconds to import everything."""
    with _as_command([QUICKSTART[1], *arguments], cwd) as result:
        runpy.run_path(QUICKSTART[1], run_name="__main__")
    return result


def ript_ray_here(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`ript-ray` with these arguments, likewise."""
    with _as_command(["ript-ray", *arguments], cwd) as result:
        main()
    return result


@contextlib.contextmanager
def _as_command(command: list[str], cwd: Path) -> Iterator[subprocess.CompletedProcess[str]]:
    """What a process of its own would be: argument list, folder, output, exit code, signal handler."""
    result = subprocess.CompletedProcess(command, 0, "", "")
    output, errors, argv, on_terminate = io.StringIO(), io.StringIO(), sys.argv, signal.getsignal(signal.SIGTERM)
    sys.argv = command
    try:
        with contextlib.chdir(cwd), contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            yield result
    except SystemExit as end:
        result.returncode = int(end.code or 0)
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, on_terminate)
        result.stdout, result.stderr = output.getvalue(), errors.getvalue()
