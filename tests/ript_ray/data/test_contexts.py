import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from ript_envs.metaworld.benchmark import MetaWorld
from ript_ray.data.contexts import draw_contexts, read_contexts, rollout_noise, with_noise
from ript_ray.errors import ConfigError
from ript_ray.rl.context_stream import ContextStream
from ript_ray.seeding import Purpose, Split
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


def test_training_demonstration_validation_and_test_contexts_never_overlap() -> None:
    benchmark = LineBenchmark()
    sampled = [
        draw_contexts(benchmark, benchmark.tasks, num_per_task=200, seed=0, purpose=purpose)
        for purpose in (Purpose.TRAINING_CONTEXTS, Purpose.DEMONSTRATION_CONTEXTS, *(split.contexts for split in Split))
    ]
    assert len(set().union(*sampled)) == sum(map(len, sampled)) == 1600


@pytest.mark.sim
def test_the_contexts_of_metaworld_never_overlap_even_where_they_vary_in_one_dimension() -> None:
    tasks = ("drawer-open-v3", "reach-v3")
    for task in tasks:
        states = [
            context.initial_state
            for purpose in (
                Purpose.TRAINING_CONTEXTS,
                Purpose.DEMONSTRATION_CONTEXTS,
                *(split.contexts for split in Split),
            )
            for context in draw_contexts(MetaWorld(), (task,), num_per_task=100, seed=0, purpose=purpose)
        ]
        assert len(set(states)) == len(states) == 400


def test_a_larger_set_of_contexts_begins_with_the_smaller_one() -> None:
    benchmark = LineBenchmark()
    few, many = (
        draw_contexts(benchmark, ["left"], num_per_task=number, seed=0, purpose=Purpose.HELD_OUT_CONTEXTS)
        for number in (5, 50)
    )
    assert many[:5] == few


def test_a_stream_without_contexts_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one context"):
        ContextStream((), seed=0)


def line_contexts(num_per_task: int = 4) -> tuple[Context, ...]:
    benchmark = LineBenchmark()
    return draw_contexts(
        benchmark, benchmark.tasks, num_per_task=num_per_task, seed=0, purpose=Purpose.TRAINING_CONTEXTS
    )


def write_contexts(path: Path, contexts: Sequence[Context]) -> None:
    path.write_text(json.dumps([{"task": each.task, "initial_state": each.initial_state} for each in contexts]))


def test_contexts_are_read_from_a_file_to_the_last_bit_for_the_tasks_and_the_number_requested(tmp_path: Path) -> None:
    path = tmp_path / "contexts.json"
    contexts = line_contexts()
    write_contexts(path, contexts)
    benchmark = LineBenchmark()
    assert read_contexts(path, benchmark, benchmark.tasks, num_per_task=4) == contexts
    assert read_contexts(path, benchmark, ["right"], num_per_task=2) == contexts[4:6]


BAD_CONTEXT_FILES = {
    "missing": (None, "contexts.json is missing"),
    "not JSON": ("[{", "contexts.json cannot be read: it is not JSON"),
    "not a list of contexts": ('{"task": "left"}', "contexts.json is not a valid context file"),
    "no state": ('[{"task": "left"}]', "KeyError.*initial_state"),
    "a state of words": ('[{"task": "left", "initial_state": ["a"]}]', "contexts.json is not a valid context file"),
    "too few": ('[{"task": "left", "initial_state": [0.0, 1.0]}]', "contains 1 contexts of left, fewer than the 2"),
}


@pytest.mark.parametrize("case", BAD_CONTEXT_FILES)
def test_an_invalid_context_file_is_named_with_the_problem(case: str, tmp_path: Path) -> None:
    text, message = BAD_CONTEXT_FILES[case]
    path = tmp_path / "contexts.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_contexts(path, LineBenchmark(), ["left"], num_per_task=2)


@pytest.mark.sim
def test_noise_is_the_same_for_the_same_seed_differs_between_contexts_and_is_none_at_zero() -> None:
    benchmark = MetaWorld()
    state = tuple(benchmark.draw_initial_state("reach-v3", (0,)).tolist())
    contexts = (Context("reach-v3", "reach", state),) * 3
    assert with_noise(benchmark, contexts, std_m=0.0, seed=0) == contexts
    moved = with_noise(benchmark, contexts, std_m=0.025, seed=0)
    assert len({context.initial_state for context in moved}) == 3
    assert moved == with_noise(benchmark, contexts, std_m=0.025, seed=0)
    assert moved != with_noise(benchmark, contexts, std_m=0.025, seed=1)
    with pytest.raises(ConfigError, match=r"noise on contexts: .* at least 0 m"):
        with_noise(benchmark, contexts, std_m=-1.0, seed=0)


@pytest.mark.sim
def test_noise_on_rollouts_repeats_for_a_seed_moves_what_decides_the_task_and_is_none_at_zero() -> None:
    benchmark = MetaWorld()
    state = benchmark.draw_initial_state("reach-v3", (0,))
    context = Context("reach-v3", "reach", tuple(state.tolist()))
    assert rollout_noise(benchmark, std_m=0.0) is None
    perturb = rollout_noise(benchmark, std_m=0.1)
    assert perturb is not None
    moved = [perturb(context, (0, 13, 0, member)) for member in range(8)]
    assert moved == [perturb(context, (0, 13, 0, member)) for member in range(8)]
    assert len({each.initial_state[3:5] for each in moved}) == 8, "the goal decides this task"
    assert {(each.task, each.instruction, each.initial_state[:3]) for each in moved} == {
        ("reach-v3", "reach", tuple(state[:3].tolist()))
    }


def test_noise_on_rollouts_of_a_benchmark_that_cannot_move_objects_is_refused() -> None:
    perturb = rollout_noise(LineBenchmark(), std_m=0.1)
    assert perturb is not None
    with pytest.raises(ConfigError, match="noise on contexts: the line cannot move the objects of left"):
        perturb(CONTEXTS[0], (0,))
