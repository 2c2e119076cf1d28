"""Whether MuJoCo can be imported and can render on this machine, found out without importing it."""

import ctypes.util
import os
from pathlib import Path

BACKENDS = ("egl", "osmesa", "glfw")
"""Those that render images without a window."""

LIBRARIES = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so.8"}
"""What a backend loads."""

WORDS = ("glx", "on", "off", "enable", "disable", "enabled", "disabled", "true", "false", "1", "0", "")
"""What else MuJoCo takes; the middle ones switch rendering on or off."""


class RenderingError(RuntimeError):
    """This machine cannot render images as it was asked to; the message says what to change."""


def system_libraries() -> dict[str, str]:
    """Return each shared library that images are rendered with, and the package of Debian and Ubuntu that has it."""
    lines = Path(__file__).with_name("system_libraries.txt").read_text().splitlines()
    return dict(line.split() for line in lines if not line.startswith("#"))


def chosen_backend() -> str:
    """Return the value of MUJOCO_GL, as MuJoCo reads it; empty if it is not set."""
    return os.environ.get("MUJOCO_GL", "").lower().strip()


def used_backend() -> str:
    """Return what images are rendered with: what MUJOCO_GL says, else EGL, else OSMesa."""
    return chosen_backend() or ("egl" if has_library(LIBRARIES["egl"]) else "osmesa")


def require_gl() -> None:
    """Check MUJOCO_GL before MuJoCo is imported: with a wrong value its import fails, even if no image is rendered.

    Raises:
        RenderingError: MuJoCo does not know the value, or this machine lacks what it asks for.
    """
    backend = chosen_backend()
    if backend not in (*BACKENDS, *WORDS):
        raise RenderingError(f"MUJOCO_GL is {backend!r}; it must be {', '.join(BACKENDS)} or unset")
    library = LIBRARIES.get(backend)
    if library and not has_library(library):
        package = system_libraries()[library]
        raise RenderingError(
            f"MUJOCO_GL is {backend}, but there is no {library}: install {package}, or unset MUJOCO_GL"
        )
    if backend == "glfw" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise RenderingError(
            "MUJOCO_GL is glfw, which needs a display, but neither DISPLAY nor WAYLAND_DISPLAY is set: set it to "
            "egl or osmesa, or unset it"
        )


def require_renderer() -> None:
    """Check that this machine can render images without a window, as far as that is known before it is tried.

    Raises:
        RenderingError: MUJOCO_GL is wrong, switches rendering off, or is not set and there is no library.
    """
    require_gl()
    backend = chosen_backend()
    if backend and backend not in BACKENDS:
        raise RenderingError(f"MUJOCO_GL is {backend!r}; to render images it must be {', '.join(BACKENDS)} or unset")
    if not backend and not any(map(has_library, LIBRARIES.values())):
        raise RenderingError("images cannot be rendered here: install libegl1 and libgl1, or libosmesa6")


def has_library(library: str) -> bool:
    """Return whether a shared library can be loaded."""
    try:
        ctypes.CDLL(library)
    except OSError:  # another version, perhaps
        return ctypes.util.find_library(library.removeprefix("lib").partition(".")[0]) is not None
    return True
