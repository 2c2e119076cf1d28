"""Work done ahead in threads, in order: what a supervised stage reads for its next steps."""

import collections
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

NUM_THREADS = 2
"""Threads that read. Source: ours; reading files, decoding and resizing leave the interpreter to the others mostly."""

NUM_AHEAD = 4
"""Requests that are worked on, or done, before they are asked for."""

Request = TypeVar("Request")
Result = TypeVar("Result")


def map_ahead(work: Callable[[Request], Result], requests: Iterable[Request]) -> Generator[Result, None, None]:
    """Yield `work(request)` of each request, in their order; close the generator to end the threads.

    Args:
        work: Called from several threads at the same time. What it raises is raised where its result would have come.
        requests: Drawn in the caller's thread, `NUM_AHEAD` before they are needed.
    """
    pool = ThreadPoolExecutor(NUM_THREADS, "read-ahead")
    waiting: collections.deque[Future[Result]] = collections.deque()
    try:
        for request in requests:
            waiting.append(pool.submit(work, request))
            if len(waiting) > NUM_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
