"""Compiled models in files: a simulator starts in under a second instead of four, and takes 0.6 GB less at its peak.

A file takes about 0.3 GB. Files that do not fit their assets any more are not read, and never deleted.
"""

import contextlib
import hashlib
import importlib.metadata
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import mujoco

logger = logging.getLogger(__name__)

FOLDER = "RIPT_LIBERO_CACHE"
"""The environment variable that names the folder of the files, on each machine; without it, models are compiled."""


class Cached:
    """Mixed into a robosuite environment: its model comes from a file, where there is one."""

    sim: Any
    model: Any
    control_freq: float

    def _initialize_sim(self, xml_string: str | None = None) -> None:
        """As `MujocoEnv._initialize_sim`, but for the compilation."""
        self.sim = importlib.import_module("robosuite.utils.binding_utils").MjSim(
            compiled(xml_string or self.model.get_xml())
        )
        self.sim.forward()
        self.initialize_time(self.control_freq)  # type: ignore[attr-defined]  # MujocoEnv's


def compiled(xml: str) -> mujoco.MjModel:
    """Compile a model, or read it from the folder that the environment variable names."""
    if not os.environ.get(FOLDER):
        return mujoco.MjModel.from_xml_string(xml)
    path = Path(os.environ[FOLDER], f"{fingerprint(xml)}.mjb")
    if path.is_file():
        try:
            return mujoco.MjModel.from_binary_path(str(path))
        except ValueError as error:
            logger.warning("%s is corrupt and is written again: %s", path, error)
    model = mujoco.MjModel.from_xml_string(xml)
    try:
        _write(model, path)
    except OSError as error:
        logger.warning("the compiled model was not kept: %s", error)
    return model


def fingerprint(xml: str) -> str:
    """Return the hash of all that a compiled model depends on: the simulator's version, XML, and the files it names.

    Of the files, size and time of change count: reading them would take as long as compiling them.
    """
    digest = hashlib.sha256(f"{importlib.metadata.version('mujoco')}\n{xml}".encode())
    for name in sorted(set(re.findall(r'file="([^"]+)"', xml))):
        with contextlib.suppress(OSError):  # the compiler says what is missing
            status = Path(name).stat()
            digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _write(model: mujoco.MjModel, path: Path) -> None:
    """Write a model under a temporary name and rename it: several processes may do so at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".unfinished")
    os.close(handle)
    try:
        mujoco.mj_saveModel(model, unfinished)
        if Path(unfinished).stat().st_size < mujoco.mj_sizeModel(model):
            raise OSError(f"{path.parent} has no room for {mujoco.mj_sizeModel(model)} bytes")
        Path(unfinished).replace(path)
    finally:
        Path(unfinished).unlink(missing_ok=True)
