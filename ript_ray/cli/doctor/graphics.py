"""GPUs, their driver, and what images are rendered with."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ript_envs.gl import RenderingError, chosen_backend, has_library, require_gl, system_libraries, used_backend
from ript_ray.cli.doctor.finding import GIB, INSTALL, Finding

DRIVER = Path("/proc/driver/nvidia/version")
TIMEOUT_S = 60.0
"""For EGL to answer: a broken driver may hang."""

GRAPHICS = "install the driver's EGL; in a container, NVIDIA_DRIVER_CAPABILITIES=compute,graphics,utility lends it"


def gpus() -> Iterator[Finding]:
    """Check the GPU's driver, and the GPUs that torch finds."""
    version = driver_version(DRIVER)
    try:
        torch = importlib.import_module("torch")
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    except (ImportError, OSError) as error:
        yield Finding("torch", f"cannot be imported: {error}", good=False, needed=True, fix=INSTALL)
        return
    except RuntimeError as error:  # the driver counts a GPU that CUDA cannot start
        fix = "look at the driver, its fabric manager, and what else uses the GPU"
        yield Finding("GPU", f"torch cannot use it: {error}", good=False, fix=fix)
        return
    if not version and not devices:
        yield Finding("GPU", "none: everything runs on the CPU")
        return
    yield Finding("GPU driver", version or "not found")
    if not devices:
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"
        fix = f"torch is built for {build}: try another build or driver, and look at CUDA_VISIBLE_DEVICES"
        yield Finding("GPU", "torch finds none", good=False, fix=fix)
    for index, device in enumerate(devices):
        yield Finding(f"GPU {index}", f"{device.name}, {device.total_memory / GIB:.0f} GiB")


def driver_version(file: Path) -> str:
    """Return the version of NVIDIA's driver, as its kernel module tells it; empty if there is none."""
    try:
        found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", file.read_text())
    except OSError:
        return ""
    return found.group(1) if found else ""


def rendering() -> Iterator[Finding]:
    """Check what MuJoCo renders with: the libraries, which of them MUJOCO_GL asks for, and each device of EGL's."""
    try:
        require_gl()
        wrong = ""
    except RenderingError as error:
        wrong = str(error)
    found = chosen_backend() or f"not set: {used_backend()}"
    yield Finding("MUJOCO_GL", found, good=not wrong, needed=True, fix=wrong)
    for library, package in system_libraries().items():
        has = has_library(library)
        yield Finding(library, "found" if has else "not found", good=has, fix=f"apt-get install {package}")
    if importlib.util.find_spec("mujoco") is None:
        fix = "pip install 'ript-ray[metaworld]' or 'ript-ray[libero]'"
        yield Finding("EGL", "not asked: MuJoCo, which renders, is not installed", good=False, fix=fix)
    elif used_backend() == "egl" and not wrong:
        yield from egl_devices()


def egl_devices() -> Iterator[Finding]:
    """Check that MuJoCo can use each device of EGL's, in a process that a broken driver may hang or kill."""
    code = "from ript_envs.egl_device import devices; print(*devices(), sep='\\n')"
    try:
        command = (sys.executable, "-c", code)
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        yield Finding("EGL", f"does not answer within {TIMEOUT_S:.0f} s", good=False, fix="MUJOCO_GL=osmesa")
        return
    if result.returncode:
        why = (result.stderr.splitlines() or [f"ended with {result.returncode}"])[-1]
        yield Finding("EGL", f"cannot be asked: {why}", good=False, fix=f"{INSTALL}, or {GRAPHICS}")
        return
    for index, (gpu, works) in enumerate(map(ast.literal_eval, result.stdout.splitlines())):
        place = "no GPU: software" if gpu is None else f"GPU {gpu}"
        yield Finding(f"EGL device {index}", place if works else f"{place}, does not start", good=works, fix=GRAPHICS)
