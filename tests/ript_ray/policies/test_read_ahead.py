"""Work that is done ahead in threads: in order, with its errors, and no more than is soon needed."""

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from ript_ray.errors import RiptError
from ript_ray.policies.read_ahead import NUM_AHEAD, NUM_THREADS, map_ahead

DEADLINE_S = 60.0


def readers() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("read-ahead")}


def test_results_come_in_order_whichever_is_done_first_and_no_thread_is_left() -> None:
    def squared(number: int) -> int:
        time.sleep(0.02 if number == 3 else 0.0)
        return number**2

    assert list(map_ahead(squared, [3, 1, 4, 1, 5, 9, 2, 6])) == [9, 1, 16, 1, 25, 81, 4, 36]
    assert list(map_ahead(squared, [])) == []
    assert not readers()


def test_several_are_worked_on_at_the_same_time_while_the_caller_does_something_else() -> None:
    together = threading.Barrier(NUM_THREADS)

    def meet(number: int) -> int:
        together.wait(DEADLINE_S)
        return number

    assert list(map_ahead(meet, range(2 * NUM_THREADS))) == [*range(2 * NUM_THREADS)]
    are_done = threading.Event()

    def note(number: int) -> int:
        if number == NUM_AHEAD:
            are_done.set()
        return number

    with closing(map_ahead(note, itertools.count())) as results:
        next(results)
        assert are_done.wait(DEADLINE_S), "nobody has asked for it yet"


def test_only_what_is_soon_needed_is_drawn_and_closing_early_ends_the_threads() -> None:
    drawn: list[int] = []

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            drawn.append(number)
            yield number

    with closing(map_ahead(abs, numbers())) as results:
        for number in range(3):
            assert next(results) == number
            assert len(drawn) == number + 1 + NUM_AHEAD
        assert readers()
    assert not readers()


def test_an_error_arrives_where_its_result_would_have() -> None:
    def halved(number: int) -> int:
        if number % 2:
            raise RiptError(f"{number} is odd")
        return number // 2

    results = map_ahead(halved, [2, 4, 5, 6, 7])
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(RiptError, match="5 is odd"):
        next(results)
    assert not readers()
