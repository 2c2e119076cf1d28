"""Conformance tests of the benchmark contract (`ript_envs.contract`), for benchmarks of your own.

Every check is a claim in plain English; its error says what was found instead. In the tests of a benchmark:

    @pytest.mark.parametrize("result", check_benchmark(MyBenchmark()), ids=lambda result: result.name)
    def test_my_benchmark_conforms_to_the_contract(result):
        assert result.error is None, result.error

`ript-ray check-benchmark MODULE:NAME` prints the same results.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ript_envs.conformance.checklist import (
    Checklist,
    CheckResult,
    difference,
    expect,
    expect_array,
    expect_equal_json,
    expect_equal_pickle,
    expect_tagged_value,
    expect_value_error,
    global_seed,
    pickled_copy,
)
from ript_envs.contract import Benchmark, Environment, EnvironmentSpec, Observation, ScriptedExpert, require_task

UNKNOWN = "no such name"
NUM_STEPS = 20
SEED, OTHER_SEED = (0, 1, 2**32 - 1, 2), (0, 1, 2**32 - 1, 3)
STD_M = 0.005


def check_benchmark(benchmark: Benchmark, task: str | None = None) -> list[CheckResult]:
    """Check a benchmark against the contract.

    Args:
        benchmark: The benchmark; nothing in its process is left changed.
        task: The task whose environments are checked; the first one unless given.

    Returns:
        One result per claim. Claims about cameras, a scripted expert and moving objects are left out where the
        benchmark has none.

    Raises:
        ValueError: The benchmark has no task `task`.
    """
    checks, checklist = _BenchmarkChecks(benchmark, task), Checklist()
    check = checklist.run
    check("it is a frozen dataclass with a field `kind`", lambda: expect_tagged_value(benchmark, Benchmark))
    check("it equals its pickled copy", lambda: expect_equal_pickle(benchmark))
    check("it equals what is read from its JSON", lambda: expect_equal_json(benchmark))
    spec = check("its spec has a name and positive sizes and rates", checks.spec_is_sane)
    tasks = check("it has tasks, each with a name of its own and an instruction", checks.tasks_are_named)
    if task is not None and tasks.error is None:
        require_task(task, benchmark.tasks, type(benchmark).__name__)
    check("its task sets hold its tasks", checks.task_sets_hold_tasks, tasks)
    check("each task's demonstration path is relative and its own", checks.demonstration_paths_are_relative, tasks)
    check("an unknown task raises ValueError", checks.unknown_task_is_refused)
    states = check("an initial state is 1-D, float64 and finite", checks.initial_state_is_a_vector, tasks)
    drawn = check("the same seed draws the same initial state", checks.same_seed_same_state, states)
    check("another seed draws another initial state", checks.other_seed_other_state, states)
    runs = check("its environment is reset, stepped and observed", checks.environment_runs, drawn, spec)
    check("step returns a bool", checks.step_returns_bool, runs)
    check("an observation holds float32 sensors as in the spec", checks.sensors_are_those_of_the_spec, runs)
    check("an observation holds no image that was not asked for", checks.no_image_unless_asked_for, runs)
    check("an observation stays as it is when the environment is stepped", checks.observation_is_a_copy, runs)
    same = check("an episode depends on its initial state and actions alone", checks.episode_is_repeatable, runs)
    reset = check("reset makes a used environment equal to a fresh one", checks.reset_equals_fresh, same)
    check("step clips actions to [-1, 1]", checks.actions_are_clipped, reset)
    if spec.error or benchmark.spec.image_shapes:
        seen = check("with_cameras adds the images of those cameras alone", checks.cameras_add_images, runs)
        check("with_cameras refuses an unknown camera with ValueError", checks.unknown_camera_is_refused, spec)
        check("an image in an observation equals what render returns", checks.image_equals_render, seen, same)
        check("rendering changes nothing in the simulation", checks.rendering_changes_nothing, seen, same)
        check(
            "the first image after reset equals that of a fresh environment", checks.first_image_is_fresh, seen, reset
        )
        check("with_rendering changes the size of the images", checks.images_can_be_resized, seen)
    if runs.error or checks.has_expert:
        check("the scripted expert's actions are float32 and within [-1, 1]", checks.expert_acts, runs)
    if type(benchmark).move_objects is not Benchmark.move_objects:
        check("move_objects depends on its seed alone and moves nothing by 0 m", checks.objects_move, runs)
    check("close ends one environment and leaves the others working", checks.close_ends_one, same)
    return checklist.results


@contextlib.contextmanager
def _closing(environment: Environment) -> Iterator[Environment]:
    """Close an environment at the end; what that raises is the subject of a check of its own."""
    try:
        yield environment
    finally:
        with contextlib.suppress(Exception):
            environment.close()


@dataclass(frozen=True)
class _Step:
    """What was seen before the first step (success None) or after one; nothing is observed after a success."""

    observation: Observation
    success: Any


def _episode(
    environment: Environment, initial_state: NDArray[np.float64], actions: Sequence[NDArray[np.float32]]
) -> list[_Step]:
    """Reset and step until the task is solved."""
    environment.reset(initial_state.copy())
    steps = [_Step(_copied(environment.observe()), None)]
    for action in actions:
        success = environment.step(action.copy())
        steps.append(_Step({} if success else _copied(environment.observe()), success))
        if success:
            break
    return steps


def _copied(observation: Observation) -> Observation:
    return {name: np.array(array) for name, array in observation.items()}


def _expect_same_episode(expected: Sequence[_Step], actual: Sequence[_Step]) -> None:
    for index, (wanted, found) in enumerate(zip(expected, actual, strict=False)):
        expect(found.success == wanted.success, f"step {index} returned {found.success}, not {wanted.success}")
        problem = difference(wanted.observation, found.observation)
        expect(problem is None, f"after {index} of the same steps the observation differs: {problem}")


class _BenchmarkChecks:
    """The claims; each method raises where its claim does not hold."""

    def __init__(self, benchmark: Benchmark, task: str | None):
        self.has_expert = False
        self._benchmark = benchmark
        self._given_task = task

    @property
    def _task(self) -> str:
        return self._given_task or self._benchmark.tasks[0]

    def _fresh(self, *cameras: str) -> contextlib.AbstractContextManager[Environment]:
        return _closing(self._benchmark.with_cameras(cameras).make(self._task))

    def _state(self, seed: tuple[int, ...] = SEED) -> NDArray[np.float64]:
        return self._benchmark.draw_initial_state(self._task, seed)

    def _actions(self, seed: int = 0) -> list[NDArray[np.float32]]:
        shape = (NUM_STEPS, self._benchmark.spec.action_dim)
        return [*np.random.default_rng(seed).uniform(-1.0, 1.0, shape).astype(np.float32)]

    def _sensors(self, observation: Observation) -> Observation:
        cameras = self._benchmark.spec.image_shapes
        return {name: array for name, array in observation.items() if name not in cameras}

    def spec_is_sane(self) -> None:
        spec = self._benchmark.spec
        expect(isinstance(spec, EnvironmentSpec), f"spec is {type(spec).__name__}, not EnvironmentSpec")
        expect(bool(spec.name), "spec.name is empty")
        sizes = {"action_dim": spec.action_dim, "max_steps": spec.max_steps}
        sizes |= {f"state_dims[{name!r}]": dim for name, dim in spec.state_dims.items()}
        for name, size in sizes.items():
            expect(isinstance(size, int) and size >= 1, f"spec.{name} must be an integer from 1, not {size!r}")
        for name, shape in spec.image_shapes.items():
            is_shape = len(shape) == 3 and all(isinstance(size, int) and size >= 1 for size in shape) and shape[2] == 3
            expect(is_shape, f"spec.image_shapes[{name!r}] must be (height, width, 3), not {shape!r}")
        is_rate = isinstance(spec.control_hz, int | float) and 0 < spec.control_hz < math.inf
        expect(is_rate, f"spec.control_hz must be above 0 and finite, not {spec.control_hz!r}")
        expect(bool(spec.state_dims or spec.image_shapes), "spec has neither a sensor nor a camera")
        shared = spec.state_dims.keys() & spec.image_shapes.keys()
        expect(not shared, f"spec has {', '.join(sorted(shared))} as a sensor and as a camera")

    def tasks_are_named(self) -> None:
        tasks = self._benchmark.tasks
        expect(isinstance(tasks, tuple) and bool(tasks), f"tasks must be a tuple of one name or more, not {tasks!r}")
        twice = sorted({str(task) for task in tasks if tasks.count(task) > 1})
        expect(not twice, f"tasks has more than one {', '.join(twice)}")
        for task in tasks:
            instruction = self._benchmark.instruction(task)
            is_text = isinstance(instruction, str) and bool(instruction.strip())
            expect(is_text, f"the instruction of {task} must be text, not {instruction!r}")

    def task_sets_hold_tasks(self) -> None:
        for name, tasks in self._benchmark.task_sets.items():
            unknown = [task for task in tasks if task not in self._benchmark.tasks]
            expect(not unknown, f"task_sets[{name!r}] holds {', '.join(unknown)}, not in tasks")

    def demonstration_paths_are_relative(self) -> None:
        task_at: dict[Path, str] = {}
        for task in self._benchmark.tasks:
            path = self._benchmark.demonstration_path(task)
            is_below = not path.is_absolute() and ".." not in path.parts
            expect(is_below, f"the path of {task} must be relative and without .., not {path}")
            first = task_at.setdefault(path, task)
            expect(first == task, f"{first} and {task} have the same path {path}")

    def unknown_task_is_refused(self) -> None:
        calls: dict[str, Callable[[], object]] = {
            "instruction": lambda: self._benchmark.instruction(UNKNOWN),
            "make": lambda: self._benchmark.make(UNKNOWN),
            "draw_initial_state": lambda: self._benchmark.draw_initial_state(UNKNOWN, SEED),
        }
        for name, call in calls.items():
            expect_value_error(call, f"{name} of task {UNKNOWN!r}")

    def initial_state_is_a_vector(self) -> None:
        _expect_vector(self._state())

    def same_seed_same_state(self) -> None:
        first = self._state().copy()
        self._state(OTHER_SEED)  # a draw in between must change nothing
        copy = pickled_copy(self._benchmark)
        with global_seed(1):
            again = {"again": self._state(), "from a pickled copy": copy.draw_initial_state(self._task, SEED)}
        for when, state in again.items():
            expect(_same(state, first), f"seed {SEED} drew {first.tolist()}, and {when} {state.tolist()}")

    def other_seed_other_state(self) -> None:
        first, other = self._state().copy(), self._state(OTHER_SEED)
        expect(not _same(first, other), f"seeds {SEED} and {OTHER_SEED} both drew {first.tolist()}")

    def environment_runs(self) -> None:
        with global_seed(1), self._fresh() as environment:
            self.has_expert = isinstance(environment, ScriptedExpert)
            self._reference = _episode(environment, self._state(), self._actions())

    def step_returns_bool(self) -> None:
        for step in self._reference[1:]:
            kind = type(step.success)
            expect(kind is bool, f"it returned {step.success!r} of type {kind.__module__}.{kind.__name__}")

    def sensors_are_those_of_the_spec(self) -> None:
        spec = self._benchmark.spec
        expected = {name: np.zeros(dim, np.float32) for name, dim in spec.state_dims.items()}
        for step in self._reference:
            if step.success:
                continue
            sensors = self._sensors(step.observation)
            problem = difference(expected, {name: np.zeros_like(array) for name, array in sensors.items()})
            expect(problem is None, f"an observation {problem}")
            for name, array in sensors.items():
                expect(bool(np.isfinite(array).all()), f"{name} is not finite: {array.tolist()}")

    def no_image_unless_asked_for(self) -> None:
        images = [name for name in self._reference[0].observation if name in self._benchmark.spec.image_shapes]
        expect(not images, f"with_cameras(()) observes {', '.join(images)}")

    def observation_is_a_copy(self) -> None:
        with self._fresh() as environment:
            environment.reset(self._state())
            observation = environment.observe()
            before = _copied(observation)
            for action in self._actions()[:3]:
                if environment.step(action):
                    return
                environment.observe()
            problem = difference(before, observation)
            expect(problem is None, f"an earlier observation has changed: {problem}")

    def episode_is_repeatable(self) -> None:
        with global_seed(2), self._fresh() as environment:
            _expect_same_episode(self._reference, _episode(environment, self._state(), self._actions()))

    def reset_equals_fresh(self) -> None:
        state = self._state()
        with self._fresh() as environment:
            _episode(environment, self._state(OTHER_SEED), self._actions(1))
            _expect_same_episode(self._reference, _episode(environment, state, self._actions()))
            environment.reset(state)
            expect(_same(state, self._state()), "reset changed the array of the initial state")

    def actions_are_clipped(self) -> None:
        signs = [np.where(action < 0, -1.0, 1.0).astype(np.float32) for action in self._actions()]
        with self._fresh() as environment:
            bounded = _episode(environment, self._state(), signs)
            _expect_same_episode(bounded, _episode(environment, self._state(), [1e3 * action for action in signs]))
            environment.reset(self._state())
            action = 1e3 * signs[0]
            environment.step(action)
            expect(_same(action, 1e3 * signs[0]), "step changed the array of the action")

    def cameras_add_images(self) -> None:
        spec = self._benchmark.spec
        for camera, shape in spec.image_shapes.items():
            cameras = self._benchmark.with_cameras((camera,)).cameras
            expect(cameras == (camera,), f"with_cameras({(camera,)!r}) has cameras {cameras!r}")
            with self._fresh(camera) as environment:
                environment.reset(self._state())
                observation = environment.observe()
            names = {*spec.state_dims, camera}
            expect(set(observation) == names, f"with_cameras({(camera,)!r}) observes {', '.join(sorted(observation))}")
            expect_array(observation[camera], np.uint8, shape, camera)

    def unknown_camera_is_refused(self) -> None:
        expect_value_error(lambda: self._benchmark.with_cameras((UNKNOWN,)), f"with_cameras({(UNKNOWN,)!r})")

    def image_equals_render(self) -> None:
        for camera, shape in self._benchmark.spec.image_shapes.items():
            with self._fresh(camera) as environment, self._fresh() as unasked:
                for each in (environment, unasked):
                    each.reset(self._state())
                    if each.step(self._actions()[0]):  # the first image may be another one, as LIBERO's is in old code
                        return
                seen = environment.observe()[camera][:: -1 if self._benchmark.observes_bottom_up else 1]
                for found in (environment.render(camera), unasked.render(camera)):
                    expect_array(found, np.uint8, shape, camera)
                    expect(_same(found, seen), f"render({camera!r}) differs from the image in the observation")

    def rendering_changes_nothing(self) -> None:
        camera = next(iter(self._benchmark.spec.image_shapes))
        with self._fresh(camera) as environment:
            environment.reset(self._state())
            for index, step in enumerate(self._reference):
                if index:
                    environment.step(self._actions()[index - 1])
                if step.success:
                    return
                environment.render(camera)
                problem = difference(self._sensors(step.observation), self._sensors(environment.observe()))
                expect(problem is None, f"after {index} steps with images the observation differs: {problem}")

    def first_image_is_fresh(self) -> None:
        camera = next(iter(self._benchmark.spec.image_shapes))
        with self._fresh(camera) as used, self._fresh(camera) as fresh:
            _episode(used, self._state(OTHER_SEED), self._actions()[:3])
            for environment in (used, fresh):
                environment.reset(self._state())
            problem = difference(fresh.observe(), used.observe())
            expect(problem is None, f"the observation differs: {problem}")

    def images_can_be_resized(self) -> None:
        resized = self._benchmark.with_rendering(image_size=32)
        for camera, shape in resized.spec.image_shapes.items():
            expect(shape == (32, 32, 3), f"with_rendering(image_size=32) has {camera} of shape {shape}")
        with _closing(resized.make(self._task)) as environment:
            environment.reset(self._state())
            camera = next(iter(resized.spec.image_shapes))
            expect_array(environment.render(camera), np.uint8, (32, 32, 3), camera)

    def expert_acts(self) -> None:
        with self._fresh() as environment:
            environment.reset(self._state())
            assert isinstance(environment, ScriptedExpert)
            for _ in range(NUM_STEPS):
                try:
                    action = environment.expert_action()
                except ValueError:
                    return  # the contract allows a task without an expert
                expect_array(action, np.float32, (self._benchmark.spec.action_dim,), "the action")
                expect(bool((np.abs(action) <= 1).all()), f"the action is {action.tolist()}")
                if environment.step(action):
                    return

    def objects_move(self) -> None:
        state = self._state()

        def moved(std_m: float) -> NDArray[np.float64]:
            return self._benchmark.move_objects(self._task, state, std_m=std_m, seed=SEED)

        try:
            unmoved, first, again = moved(0.0), moved(STD_M), moved(STD_M)
        except ValueError:
            return  # the contract allows a benchmark to refuse
        expect(_same(state, self._state()), "move_objects changed the array that it was given")
        expect(_same(unmoved, state), f"by 0 m it moved {state.tolist()} to {unmoved.tolist()}")
        expect(_same(first, again), f"the same seed gave {first.tolist()} and {again.tolist()}")
        _expect_vector(first)
        with self._fresh() as environment:
            environment.reset(first)

    def close_ends_one(self) -> None:
        with self._fresh() as other:
            closed = self._benchmark.with_cameras(()).make(self._task)
            _episode(closed, self._state(), self._actions()[:1])
            closed.close()
            _expect_same_episode(self._reference, _episode(other, self._state(), self._actions()))


def _expect_vector(state: Any) -> None:
    expect_array(state, np.float64, (None,), "the state")
    expect(bool(np.isfinite(state).all()), f"the state is not finite: {state.tolist()}")


def _same(first: NDArray[Any], second: NDArray[Any]) -> bool:
    return difference({"array": first}, {"array": second}) is None
