"""LIBERO's own environment without cameras: the reference that our faster step and reset drive.

robosuite and LIBERO are imported here, in the process that steps them, and nowhere else.
"""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ript_envs.libero.installation import import_libero
from ript_envs.libero.perturbations import problem


def build(suite: str, task: str, *, perturbation: str = "none") -> Any:
    """Build LIBERO's environment of a task, without cameras and with resets that keep the compiled model.

    Returns:
        An instance of `libero.libero.envs.bddl_base_domain.BDDLBaseDomain`.
    """
    wrapper = import_libero()
    with problem(suite, perturbation, task) as path, seeded(0):  # construction resets once
        return wrapper.ControlEnv(
            bddl_file_name=str(path),
            has_offscreen_renderer=False,
            use_camera_obs=False,
            hard_reset=False,
            ignore_done=True,
        ).env


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, from which LIBERO draws; afterwards it is as it was."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


def randomization_error() -> type[Exception]:
    """Return what LIBERO raises if no valid placement of the objects was found."""
    return importlib.import_module("robosuite.utils.errors").RandomizationError
