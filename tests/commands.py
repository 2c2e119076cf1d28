"""The project's commands from this checkout, as child processes or in this process."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from experiments import quickstart
from ript_ray.cli.launch import launch, launch_preset
from ript_ray.cli.main import main

ROOT = Path(__file__).parents[1]
QUICKSTART = (sys.executable, "-m", "experiments.quickstart")
RIPT_RAY = (sys.executable, "-c", "from ript_ray.cli.main import main; main()")


def environment() -> dict[str, str]:
    """Return this process's environment, with the sources importable and MLflow's default store."""
    own = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'envs'}", "COLUMNS": "120"}
    own.pop("MLFLOW_TRACKING_URI", None)
    return own


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a child process, for at most 840 s."""
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=840, check=False)


def only_folder(runs: Path) -> Path:
    """Return the folder of the only run of an experiment, given the folder of its runs."""
    (folder,) = (path for path in runs.iterdir() if not path.is_symlink())
    return folder


def quickstart_here(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the quickstart in this process: a child process takes seconds to import everything."""
    with _as_command(["quickstart", *arguments], cwd) as result:
        launch(quickstart.EXPERIMENT, quickstart.__doc__ or "")
    return result


def preset_here(module: ModuleType, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a launcher that has presets in this process."""
    with _as_command([module.__name__, *arguments], cwd) as result:
        launch_preset(module.PRESETS, module.__doc__ or "")
    return result


def ript_ray_here(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `ript-ray` in this process."""
    with _as_command(["ript-ray", *arguments], cwd) as result:
        main()
    return result


@contextlib.contextmanager
def _as_command(command: list[str], cwd: Path) -> Iterator[subprocess.CompletedProcess[str]]:
    """Imitate a child process: arguments, working directory, output, exit code, signal handlers."""
    result = subprocess.CompletedProcess(command, 0, "", "")
    output, errors, argv = io.StringIO(), io.StringIO(), sys.argv
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    sys.argv = command
    try:
        with contextlib.chdir(cwd), contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            yield result
    except SystemExit as end:
        result.returncode = int(end.code or 0)
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
        result.stdout, result.stderr = output.getvalue(), errors.getvalue()
