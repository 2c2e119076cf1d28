"""How a command begins, is interrupted and ends, each in a process without torch and Ray."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import QUICKSTART, RIPT_RAY, environment

pytestmark = pytest.mark.cli

HEAVY = ("torch", "ray", "mujoco", "metaworld", "scipy", "mlflow")
ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


def command(body: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose function has the body."""
    code = (
        "import signal, sys\nfrom ript_ray.cli.entrypoint import run_command, begin_loading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a script in the background has it ignored\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        f"def command():\n    {body.replace(chr(10), chr(10) + '    ')}\n    return 0\nrun_command(command)"
    )
    own = {**environment(), **variables}
    return subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=False)


def stopped(*signals: str) -> subprocess.CompletedProcess[str]:
    """A command that gets a SIGHUP, and the signals while it saves."""
    saving = "\n    ".join(f"signal.raise_signal(signal.{name})" for name in signals)
    return command(f"try:\n    signal.raise_signal(signal.SIGHUP)\nfinally:\n    {saving}\n    print('saved')")


def shadowed(folder: Path) -> dict[str, str]:
    """An environment in which the modules in a folder stand for packages of the same names."""
    own = environment()
    return own | {"PYTHONPATH": f"{folder}{os.pathsep}{own['PYTHONPATH']}"}


def test_a_second_interrupt_lets_a_command_save_and_says_that_a_third_does_not() -> None:
    result = stopped("SIGTERM", "SIGHUP", "SIGINT")
    assert (result.returncode, result.stdout) == (130, "saved\n")
    assert result.stderr == (
        "stopping: what is finished is being saved; press Ctrl-C once more to give that up\ninterrupted\n"
    )


def test_a_third_interrupt_ends_a_command_at_once_without_a_traceback() -> None:
    result = stopped("SIGINT", "SIGINT")
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr.count("\n") == 1


def test_an_ignored_signal_stays_ignored_as_under_nohup() -> None:
    with subprocess.Popen(
        ("nohup", sys.executable, "-c", "from tests.ript_ray.cli.test_entrypoint import hang_up; hang_up()"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.communicate(timeout=300)[0] == "still here\n"


def hang_up() -> None:
    from ript_ray.cli.entrypoint import run_command

    def still_here() -> int:
        import signal

        signal.raise_signal(signal.SIGHUP)
        print("still here")
        return 0

    run_command(still_here)


def test_the_first_line_comes_before_any_package_that_takes_seconds_to_import() -> None:
    result = command(
        "import json\nfrom ript_ray.cli import launch, main\nfrom ript_ray.tracking.logs import console_logging\n"
        "with console_logging():\n    begin_loading()\n"
        f"print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    )
    first, modules = result.stdout.splitlines()
    assert first.endswith("loading torch and other packages")
    assert json.loads(modules) == []


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MUJOCO_GL": "garbage"}, "MUJOCO_GL is 'garbage'; it must be egl, osmesa, glfw or unset"),
        ({"MUJOCO_GL": "glfw", "DISPLAY": "", "WAYLAND_DISPLAY": ""}, "glfw, which needs a display"),
    ],
)
def test_a_wrong_mujoco_gl_is_named_before_mujoco_is_imported(variables: dict[str, str], message: str) -> None:
    result = command("begin_loading()", **variables)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_an_output_that_cannot_encode_a_character_ends_no_command() -> None:
    result = command(r"print('\u2501 \xe9')", **ASCII)
    assert (result.returncode, result.stdout) == (0, "? ?\n")


def unread(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A process whose standard output is a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as output:
        return subprocess.run(
            (sys.executable, *arguments),
            env=environment() | {"PYTHONUNBUFFERED": ""} | variables,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )


@pytest.mark.parametrize("arguments", [("--version",), ("demos", "--help")])
def test_an_output_that_nobody_reads_any_more_ends_a_command_without_a_message(arguments: tuple[str, ...]) -> None:
    result = unread("-m", "ript_ray", *arguments)
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_an_output_of_any_size_may_lose_its_reader(size: int) -> None:
    body = f"from ript_ray.cli.entrypoint import run_command; run_command(lambda: print('x' * {size}) or 0)"
    result = unread("-c", body)
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.parametrize("missing", ["", "tyro"])
def test_the_first_line_of_the_doctors_json_can_be_taken_without_a_traceback(tmp_path: Path, missing: str) -> None:
    if missing:
        (tmp_path / f"{missing}.py").write_text("raise ModuleNotFoundError('No module named tyro')")
    result = unread("-m", "ript_ray", "doctor", "--json", PYTHONPATH=shadowed(tmp_path)["PYTHONPATH"])
    assert (result.returncode, result.stderr) == (1, "error: No module named tyro\n" if missing else "")


def test_a_full_disk_is_named_and_so_is_a_connection_that_breaks() -> None:
    with open("/dev/full", "wb") as full:
        code = "from ript_ray.cli.entrypoint import run_command; run_command(lambda: print('x') or 0)"
        command_line = (sys.executable, "-c", code)
        result = subprocess.run(
            command_line,
            env=environment() | {"PYTHONUNBUFFERED": ""},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (result.returncode, result.stderr) == (1, "error: [Errno 28] No space left on device\n")
    broken = command("print('so far')\nraise BrokenPipeError('the connection is closed')")
    assert (broken.returncode, broken.stdout) == (1, "so far\n")
    assert broken.stderr == "error: the connection is closed\n"


def test_the_doctor_answers_where_packages_are_missing_that_the_command_itself_needs(tmp_path: Path) -> None:
    for missing in ("tyro", "rich", "packaging", "torch", "mujoco", "grpc"):
        (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('No module named {missing}')")
    result = subprocess.run(
        (sys.executable, "-m", "ript_ray", "doctor"),
        env=shadowed(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (1, "error: No module named tyro\n")
    assert "error  packaging  not installed: No module named packaging  make install" in result.stdout
    assert "error  torch  cannot be imported: No module named torch  make install" in result.stdout
    assert "warning  EGL  cannot be asked: ModuleNotFoundError: No module named mujoco" in result.stdout
    assert "ok  MUJOCO_GL" in result.stdout


def test_a_path_with_nothing_there_is_named_before_any_package_is_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is imported')")
    command = (*RIPT_RAY, "evaluate", "nowhere")
    result = subprocess.run(command, env=shadowed(tmp_path), capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (1, "error: there is nothing at nowhere\n")


def test_a_launcher_says_its_first_line_before_any_package_is_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is imported')")
    command = (*QUICKSTART, "--seed", "1", "--ppo.clip-high", "0.28")
    result = subprocess.run(command, env=shadowed(tmp_path), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stdout.endswith("  loading torch and other packages\n")
    assert result.stderr == "torch is imported\n"
