"""What a process uses of its machine, and how long it works."""

import contextlib
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ript_ray.types import ProcessUsage


def process_usage() -> ProcessUsage:
    """Return the memory and the processor time of this process; takes microseconds."""
    try:
        rss_bytes = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # the highest so far
    return ProcessUsage(os.getpid(), rss_bytes, time.process_time())


class BusyClock:
    """Measures the wall time in which one or several threads work; may be used from all of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_working = 0
        self._since = 0.0
        self._earlier_s = 0.0

    @property
    def busy_s(self) -> float:
        """Seconds so far."""
        with self._lock:
            return self._earlier_s + (time.monotonic() - self._since if self._num_working else 0.0)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Count the time of the block."""
        with self._lock:
            if self._num_working == 0:
                self._since = time.monotonic()
            self._num_working += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_working -= 1
                if self._num_working == 0:
                    self._earlier_s += time.monotonic() - self._since
