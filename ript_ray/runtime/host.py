"""What this machine has: cores and memory that this process may really use."""

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def num_cpus() -> int:
    """Cores this process may use: its affinity, less a container's quota; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))


def memory_bytes() -> int:
    """Memory of the machine, or of the container if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int((CGROUP / "memory.max").read_text()))
    except (OSError, ValueError):
        return total
