"""Cores, memory and processor that this process may use, container limits included, and what it does use."""

import os
import platform
import resource
import time
from pathlib import Path

from ript_ray.types import ProcessUsage

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


def processor() -> str:
    """Return the name of the processor's model, or of its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def processor_kind() -> str:
    """Return the model of the processor and the vector instructions that torch uses.

    Arithmetic gives the same bits on processors of one kind; others may round differently.
    """
    import torch  # not before `let_threads_sleep`

    return f"{processor()}, {torch.backends.cpu.get_cpu_capability()}"


def process_usage() -> ProcessUsage:
    """Return the memory and the processor time of this process; takes microseconds."""
    try:
        rss_bytes = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # the highest so far
    return ProcessUsage(os.getpid(), rss_bytes, time.process_time())


def let_threads_sleep() -> None:
    """Make OpenMP threads sleep while they wait for each other, in this process and those that it starts.

    By default they spin, which makes two learner threads up to twenty times slower wherever something else needs a
    core; asleep they cost nothing measurable. It takes effect only before torch is imported; a variable that is set
    already stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
