"""What this machine has: cores and memory that this process may really use."""

import os
from pathlib import Path

import psutil
import torch

CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")


def num_cpus() -> int:
    """Cores this process may use: its affinity, less a container's quota; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CGROUP_CPU.read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))


def num_gpus() -> int:
    """GPUs that torch can use."""
    return torch.cuda.device_count()


def memory_bytes() -> int:
    """Memory of the machine."""
    return int(psutil.virtual_memory().total)
