"""What a process uses of its machine."""

import os
import resource
import time
from pathlib import Path

from ript_ray.types import ProcessUsage


def process_usage() -> ProcessUsage:
    """Return the memory and the processor time of this process; takes microseconds."""
    try:
        rss_bytes = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # the highest so far
    return ProcessUsage(os.getpid(), rss_bytes, time.process_time())
