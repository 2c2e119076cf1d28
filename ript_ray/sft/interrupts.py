"""Interrupts that wait until work which must not be cut in two is done."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
IMPATIENT = 3
"""That many Ctrl-C do not wait."""


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP within the block wait for its end; a third Ctrl-C acts at once.

    Outside the main thread, where signals never arrive, this does nothing; nor does it to signals that are ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    handlers = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)  # none: it was not set by Python, and cannot be by it

    def wait(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if received.count(signal.SIGINT) == IMPATIENT:
            restore()
            signal.raise_signal(number)

    for number in handlers:
        signal.signal(number, wait)
    try:
        yield
    finally:
        restore()
    if received:
        signal.raise_signal(received[0])
