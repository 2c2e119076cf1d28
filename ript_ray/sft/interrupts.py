"""Interrupts that wait until work which must not be cut in two is done."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Let the first Ctrl-C, SIGTERM or SIGHUP within the block wait for its end; the second one acts at once.

    Outside the main thread, where signals never arrive, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)  # none: it was not set by Python, and cannot be by it

    def wait(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        restore()

    for number in SIGNALS:
        signal.signal(number, wait)
    try:
        yield
    finally:
        restore()
    if received:
        signal.raise_signal(received[0])
