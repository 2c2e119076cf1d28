"""Log records of rollout actors and learners, sent to the driver with the answers of their calls.

In a remote process a handler on the root logger buffers records, at most `MAX_RECORDS` per call. Every answer carries
what the buffer holds, and so does an exception; the driver hands the records to its own loggers of the same names,
with the actor and the group they belong to. This needs nothing of Ray, and nothing is sent where nothing is logged.
What a process buffered before it died or hung is lost to the driver; it is also in the process's stderr, which Ray
keeps in its log files.
"""

import contextlib
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Self, TypeVar

import ray

from ript_ray.rl.learner import Learner, UpdateReport
from ript_ray.rl.process_usage import process_usage
from ript_ray.rl.rollout import RolloutCancelledError
from ript_ray.rl.rollout_worker import RolloutWorker
from ript_ray.types import Group, GroupSummary, ProcessUsage, RolloutRequest, Weights

MAX_RECORDS = 100
"""Different records kept per call; the number of those dropped is logged."""

MAX_CHARS = 2000
"""Longest message of a record; the rest is cut off."""

REPEAT_S = 10.0
"""The driver logs one message of one logger at most once within this time, in seconds, and counts repetitions."""

PACKAGE = "ript_ray"
_ENTRIES = "ript_ray_log_entries"
"""Attribute of an exception that carries the records made before it."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class LogEntry:
    """A log record in a form that can be pickled.

    Attributes:
        name: Name of its logger.
        level: Numeric level.
        message: Formatted message, with the traceback if it has one.
        created: Unix time.
        group: Index of the request that was running, or none.
        pid: Process that logged it.
        node: Host name of its machine.
        count: Times that it was logged during the call.
    """

    name: str
    level: int
    message: str
    created: float
    group: int | None
    pid: int
    node: str
    count: int = 1


@dataclass(frozen=True)
class Logged(Generic[Value]):
    """The answer of a call, the log records made since the previous answer, and what the process uses by now."""

    value: Value
    entries: tuple[LogEntry, ...]
    usage: ProcessUsage = field(default_factory=process_usage)


class LogBuffer(logging.Handler):
    """Buffers the log records of a remote process; identical ones of one call are counted, not repeated."""

    def __init__(self) -> None:
        super().__init__()
        self._groups: dict[int, int | None] = {}  # by the thread that runs it
        self._entries: dict[tuple[str, int, str, int | None], LogEntry] = {}
        self._num_dropped = 0
        self._pid, self._node = os.getpid(), platform.node()

    @classmethod
    def install(cls, level: int) -> Self:
        """Capture all log records and warnings of this process.

        Args:
            level: Lowest level of the package's own records; other packages log from the root logger's level,
                which is WARNING by default.
        """
        buffer = cls()
        logging.getLogger().addHandler(buffer)
        logging.getLogger(PACKAGE).setLevel(level)
        logging.captureWarnings(True)
        return buffer

    def emit(self, record: logging.LogRecord) -> None:
        """Buffer a record, or count it if it repeats another one or the buffer is full."""
        try:
            message = self.format(record).rstrip()
            if len(message) > MAX_CHARS:
                message = message[:MAX_CHARS] + " [...]"
            self._add(record, message)
        except Exception:  # boundary, as in all of logging's handlers: a bad log call must not end an episode
            self.handleError(record)

    def _add(self, record: logging.LogRecord, message: str) -> None:
        group = self._running_group()
        key = (record.name, record.levelno, message, group)
        if known := self._entries.get(key):
            self._entries[key] = replace(known, count=known.count + 1)
        elif len(self._entries) == MAX_RECORDS:
            self._num_dropped += 1
        else:
            self._entries[key] = LogEntry(
                record.name, record.levelno, message, record.created, group, self._pid, self._node
            )
            sys.stderr.write(f"{record.levelname} {record.name}: {message}\n")  # survives this process

    def _running_group(self) -> int | None:
        """Return the group that this thread runs; a thread of an environment may belong to the only one that runs."""
        groups = self._groups.copy()
        only = next(iter(groups.values())) if len(groups) == 1 else None
        return groups.get(threading.get_ident(), only)

    @contextlib.contextmanager
    def call(self, group: int | None = None) -> Iterator[None]:
        """Attribute records to the request `group`; an exception takes the buffered records along."""
        thread = threading.get_ident()
        self._groups[thread] = group
        try:
            yield
        except Exception as error:
            if entries := self.take():
                vars(error)[_ENTRIES] = entries
            raise
        finally:
            del self._groups[thread]

    def take(self) -> tuple[LogEntry, ...]:
        """Return the buffered records, with a warning about dropped ones, and empty the buffer."""
        if not self._entries:
            return ()
        with self.lock or contextlib.nullcontext():  # environments may log from threads of their own
            entries, num_dropped = tuple(self._entries.values()), self._num_dropped
            self._entries, self._num_dropped = {}, 0
        if num_dropped:
            text = (
                f"{num_dropped} more log records were dropped: at most {MAX_RECORDS} different ones are kept per call"
            )
            last = entries[-1]
            entries += (replace(last, name=__name__, level=logging.WARNING, message=text, count=1),)
        return entries


class LoggedRolloutWorker(RolloutWorker):
    """A rollout worker in a process of its own: `*_logged` methods answer with the log records as well."""

    def __init__(self, log_level: int, *arguments: Any, **options: Any):
        """Capture the process's log records, then build the worker from the other arguments."""
        self._logs = LogBuffer.install(log_level)
        with self._logs.call():
            super().__init__(*arguments, **options)

    def load_logged(self, weights: Weights) -> Logged[str]:
        """See `RolloutWorker.load`."""
        with self._logs.call():
            checksum = self.load(weights)
        return Logged(checksum, self._logs.take(), self.usage)

    def roll_logged(self, request: RolloutRequest) -> tuple[Logged[GroupSummary], Group] | tuple[None, None]:
        """See `RolloutWorker.roll`. If the call is cancelled, Ray answers with an exception of its own."""
        try:
            with self._logs.call(request.index):
                summary, group = self.roll(request, is_cancelled=ray.get_runtime_context().is_canceled)
        except RolloutCancelledError:
            return None, None
        return Logged(summary, self._logs.take(), self.usage), group


class LoggedLearner(Learner):
    """A learner in a process of its own: the answer of an update carries all log records since the previous one."""

    def __init__(self, log_level: int, *arguments: Any, **options: Any):
        """Capture the process's log records, then build the learner from the other arguments."""
        self._logs = LogBuffer.install(log_level)
        with self._logs.call():
            super().__init__(*arguments, **options)

    def update_logged(self, indices: Sequence[int]) -> Logged[UpdateReport]:
        """See `Learner.update`."""
        with self._logs.call():
            report = self.update(indices)
        return Logged(report, self._logs.take())


@dataclass
class _Recent:
    """A message logged within the last `REPEAT_S`, and its latest repetition."""

    since: float
    number: int
    entry: LogEntry
    num_repeats: int = 0


class LogRelay:
    """Hands records of remote processes to the driver's loggers.

    A record has the attributes `group` (or none), `node`, `process` (the remote pid) and one named like the kind of
    process, with its number; its message begins with "[actor 2, group 17]".
    """

    def __init__(self, kind: str):
        """Relay records of processes of one kind, "actor" or "learner"."""
        self._kind = kind
        self._recent: dict[tuple[str, int, str], _Recent] = {}

    def relay(self, number: int, entries: Sequence[LogEntry]) -> None:
        """Log the records of process `number`; a message repeated within `REPEAT_S` is counted and logged later."""
        if not entries and not self._recent:
            return
        now = time.monotonic()
        self._expire(now - REPEAT_S)
        for entry in entries:
            key = (entry.name, entry.level, entry.message)
            if recent := self._recent.get(key):
                recent.number, recent.entry = number, entry
                recent.num_repeats += entry.count
            else:
                self._recent[key] = _Recent(now, number, entry)
                self._log(number, entry, f" ({entry.count} times)" if entry.count > 1 else "")

    def relay_from(self, number: int, error: BaseException | None) -> None:
        """Log the records that an exception of process `number` carries, if any."""
        self.relay(number, getattr(getattr(error, "cause", None), _ENTRIES, ()))

    def flush(self) -> None:
        """Log the counts of repetitions that are still held back."""
        self._expire(time.monotonic())

    def _expire(self, before: float) -> None:
        for key in [key for key, recent in self._recent.items() if recent.since <= before]:
            recent = self._recent.pop(key)
            if recent.num_repeats:
                self._log(recent.number, recent.entry, f" ({recent.num_repeats} more times)")

    def _log(self, number: int, entry: LogEntry, suffix: str) -> None:
        logger = logging.getLogger(entry.name)
        if not logger.isEnabledFor(entry.level):
            return
        group = "" if entry.group is None else f", group {entry.group}"
        message = f"[{self._kind} {number}{group}] {entry.message}{suffix}"
        origin = {self._kind: number, "group": entry.group, "node": entry.node}
        record = logger.makeRecord(entry.name, entry.level, "", 0, message, (), None, extra=origin)
        record.created, record.process = entry.created, entry.pid
        record.msecs = entry.created % 1 * 1000
        logger.handle(record)


def package_level() -> int:
    """Effective log level of the package in this process."""
    return logging.getLogger(PACKAGE).getEffectiveLevel()
