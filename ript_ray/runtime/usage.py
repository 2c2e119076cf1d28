"""What the processes of a runtime use, from what they report with every answer."""

from collections.abc import Mapping

from ript_ray.rl.protocols import RuntimeUsage
from ript_ray.runtime.host import process_usage
from ript_ray.types import ProcessUsage


class UsageLog:
    """The latest report of each process of one kind, and the processor time of those that were replaced.

    Attributes:
        latest: By the process's number.
    """

    def __init__(self) -> None:
        self.latest: dict[int, ProcessUsage] = {}
        self._replaced_s = 0.0

    def note(self, number: int, usage: ProcessUsage) -> None:
        """Take note of a report."""
        before = self.latest.get(number, usage)
        if before.pid != usage.pid:
            self._replaced_s += before.cpu_s
        self.latest[number] = usage

    @property
    def cpu_s(self) -> float:
        """Processor time of all processes of this kind, in seconds."""
        return self._replaced_s + sum(usage.cpu_s for usage in self.latest.values())


def total(logs: Mapping[str, UsageLog]) -> RuntimeUsage:
    """Return what this process, the driver, and the others use, by kind."""
    driver = process_usage()
    processes = {"driver": {0: driver}} | {kind: dict(log.latest) for kind, log in logs.items()}
    return RuntimeUsage(processes, driver.cpu_s + sum(log.cpu_s for log in logs.values()))
