"""Cores, memory and processor of this machine that the process may use, container limits included."""

import os
import platform
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


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


def processor_kind() -> str:
    """Return the model of the processor and the vector instructions that torch uses.

    Arithmetic gives the same bits on processors of one kind; others may round differently.
    """
    import torch  # not before `let_threads_sleep`

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def let_threads_sleep() -> None:
    """Make OpenMP threads sleep while they wait for each other, in this process and those that it starts.

    By default they spin, which makes two learner threads up to twenty times slower wherever something else needs a
    core; asleep they cost nothing measurable. It takes effect only before torch is imported; a variable that is set
    already stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
