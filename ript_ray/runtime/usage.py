"""What the processes of a runtime use, from what they report with every answer."""

from collections.abc import Mapping

from ript_ray.rl.protocols import RuntimeUsage
from ript_ray.types import ProcessUsage


class UsageLog:
    """The latest report of each process of one kind, and the processor time of those that have ended.

    Attributes:
        latest: By the process's number.
    """

    def __init__(self) -> None:
        self.latest: dict[int, ProcessUsage] = {}
        self._ended_s = 0.0

    def note(self, number: int, usage: ProcessUsage) -> None:
        """Take note of a report."""
        before = self.latest.get(number, usage)
        if before.pid != usage.pid:
            self._ended_s += before.cpu_s
        self.latest[number] = usage

    def end(self, number: int) -> None:
        """Take note that a process has ended and no other takes its number."""
        if usage := self.latest.pop(number, None):
            self._ended_s += usage.cpu_s

    @property
    def cpu_s(self) -> float:
        """Processor time of all processes of this kind, in seconds."""
        return self._ended_s + sum(usage.cpu_s for usage in self.latest.values())


def total(driver: ProcessUsage, logs: Mapping[str, UsageLog]) -> RuntimeUsage:
    """Return what the driver and the others use, by kind."""
    processes = {"driver": {0: driver}} | {kind: dict(log.latest) for kind, log in logs.items()}
    return RuntimeUsage(processes, driver.cpu_s + sum(log.cpu_s for log in logs.values()))
