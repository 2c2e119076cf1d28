"""Cores, memory and processor that this process may use, container limits included."""

import functools
import os
import platform
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CPUINFO = Path("/proc/cpuinfo")


def num_cpus() -> int:
    """Return the number of usable cores, at least 1: CPU affinity, limited by a container's CPU quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))


def memory_bytes() -> int:
    """Return the memory of the machine, or the container's limit if that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int((CGROUP / "memory.max").read_text()))
    except (OSError, ValueError):
        return total


def processor() -> str:
    """Return the name of the processor's model, or of its architecture where the system does not tell."""
    return _cpuinfo().get("model name", platform.machine())


@functools.cache
def processor_kind() -> str:
    """Return the model of the processor and the vector instructions that torch uses of it.

    Arithmetic gives the same bits on processors of one kind; others may round differently.
    """
    flags = _cpuinfo().get("flags", "").split()
    vectors = next((name for name in ("avx512f", "avx2") if name in flags), "no avx2")
    return f"{processor()}, {os.environ.get('ATEN_CPU_CAPABILITY', vectors)}"


def _cpuinfo() -> dict[str, str]:
    """What the system tells of its first core."""
    try:
        first, _, _ = CPUINFO.read_text().partition("\n\n")
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}


def let_threads_sleep() -> None:
    """Make OpenMP threads sleep while they wait for each other, in this process and those that it starts.

    By default they spin, which makes two learner threads up to twenty times slower wherever something else needs a
    core; asleep they cost nothing measurable. It takes effect only before torch is imported; a variable that is set
    already stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
