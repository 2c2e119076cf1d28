import pytest

from ript_ray.contexts import ContextStream, draw_contexts
from ript_ray.seeding import Purpose
from ript_ray.types import Context
from tests.fakes import LineBenchmark

CONTEXTS = tuple(Context("left", "go left", (0.0, float(index))) for index in range(7))


def test_each_pass_visits_every_context_once_in_a_fresh_order() -> None:
    stream = ContextStream(CONTEXTS, seed=0)
    passes = [[stream.at(7 * epoch + position) for position in range(7)] for epoch in range(4)]
    for visited in passes:
        assert set(visited) == set(CONTEXTS)
    assert len({tuple(visited) for visited in passes}) == 4


def test_a_position_has_the_same_context_however_it_is_reached() -> None:
    forwards = [ContextStream(CONTEXTS, seed=3).at(index) for index in range(30)]
    stream = ContextStream(CONTEXTS, seed=3)
    backwards = [stream.at(index) for index in reversed(range(30))]
    assert forwards == backwards[::-1]


def test_another_seed_gives_another_order() -> None:
    orders = {tuple(ContextStream(CONTEXTS, seed=seed).at(index) for index in range(7)) for seed in range(5)}
    assert len(orders) > 1


def test_training_and_held_out_contexts_never_overlap() -> None:
    benchmark = LineBenchmark()
    drawn = [
        draw_contexts(benchmark, benchmark.tasks, num_per_task=200, seed=0, purpose=purpose)
        for purpose in (Purpose.TRAINING_CONTEXTS, Purpose.HELD_OUT_CONTEXTS, Purpose.DEMONSTRATION_CONTEXTS)
    ]
    assert len(set().union(*drawn)) == sum(map(len, drawn)) == 1200


def test_more_contexts_extend_a_set_and_keep_its_beginning() -> None:
    benchmark = LineBenchmark()
    few, many = (
        draw_contexts(benchmark, ["left"], num_per_task=number, seed=0, purpose=Purpose.HELD_OUT_CONTEXTS)
        for number in (5, 50)
    )
    assert many[:5] == few


def test_a_stream_without_contexts_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one context"):
        ContextStream((), seed=0)
