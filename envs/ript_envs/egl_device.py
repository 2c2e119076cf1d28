"""Which of EGL's devices is the GPU that this process was given: EGL and CUDA number GPUs differently."""

import contextlib
import ctypes
import importlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from ript_envs.variables import environment_variables

CUDA_DEVICE_NV = 0x323A
"""The attribute with CUDA's number of an EGL device. Source: EGL_NV_device_cuda."""


@contextlib.contextmanager
def own_gpu_selected() -> Iterator[None]:
    """Let MuJoCo's first EGL context be on the first GPU that CUDA_VISIBLE_DEVICES names, as Ray sets it for an actor.

    MuJoCo takes the first of EGL's devices that works. That is left to it without a GPU of our own, with
    MUJOCO_EGL_DEVICE_ID, and where no device of EGL's is that GPU, as with Mesa's.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not visible or "MUJOCO_EGL_DEVICE_ID" in os.environ:
        yield
        return
    with environment_variables(CUDA_VISIBLE_DEVICES=None):  # NVIDIA's EGL reads it, too, but by EGL's numbers
        device = find_device(visible, cuda_numbers())
        with environment_variables(MUJOCO_EGL_DEVICE_ID=None if device is None else str(device)):
            yield


def find_device(visible: str, numbers: Sequence[int | None]) -> int | None:
    """Return the EGL device that is the first GPU in CUDA_VISIBLE_DEVICES, if one is.

    Args:
        visible: The variable's value, such as "2,3"; GPUs named by a UUID are not found.
        numbers: CUDA's number of each EGL device.
    """
    first = visible.split(",", maxsplit=1)[0].strip()
    return numbers.index(int(first)) if first.isdecimal() and int(first) in numbers else None


def cuda_numbers() -> list[int | None]:
    """Return CUDA's number of each EGL device, in MuJoCo's order; None for a device that CUDA does not know."""
    egl: Any = importlib.import_module("mujoco.egl.egl_ext")
    numbers: list[int | None] = []
    address = egl.eglGetProcAddress("eglQueryDeviceAttribEXT")
    if address is None:  # a driver without EGL_EXT_device_query
        return numbers
    query = ctypes.CFUNCTYPE(egl.EGLBoolean, egl.EGLDeviceEXT, egl.EGLint, ctypes.c_void_p)(address)
    for device in egl.eglQueryDevicesEXT():
        number = ctypes.c_ssize_t()
        is_known = query(device, CUDA_DEVICE_NV, ctypes.byref(number))
        numbers.append(number.value if is_known else None)
    return numbers


def devices() -> list[tuple[int | None, bool]]:
    """Return of each EGL device, in MuJoCo's order, CUDA's number, and whether MuJoCo can start it."""
    with environment_variables(CUDA_VISIBLE_DEVICES=None):  # as above
        return [(number, _starts(index)) for index, number in enumerate(cuda_numbers())]


def _starts(index: int) -> bool:
    mujoco_egl: Any = importlib.import_module("mujoco.egl")
    with environment_variables(MUJOCO_EGL_DEVICE_ID=str(index)):
        return bool(mujoco_egl.create_initialized_egl_device_display() != mujoco_egl.EGL.EGL_NO_DISPLAY)
