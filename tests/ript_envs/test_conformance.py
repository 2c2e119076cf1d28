"""A conforming benchmark passes every check; a broken one fails the check that names its fault, and no other."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from ript_envs.conformance.benchmark import check_benchmark
from ript_envs.conformance.checklist import NOT_CHECKED
from ript_envs.contract import Benchmark, EnvironmentSpec, Observation, Rendering, require_task
from ript_envs.metaworld.benchmark import MetaWorld

CAMERA = "top_rgb"


class PlaneEnvironment:
    """A point on a plane that is to reach a goal; its camera sees one bright pixel."""

    def __init__(self, benchmark: "Plane"):
        self.benchmark = benchmark
        self.position = np.zeros(2)

    def reset(self, initial_state: NDArray[np.float64]) -> None:
        self.position, self.goal = initial_state[:2].copy(), initial_state[2:].copy()

    def step(self, action: NDArray[np.float32]) -> bool:
        self.position += 0.05 * np.clip(action, -1, 1)
        return bool(np.abs(self.position - self.goal).max() < 0.01)

    def observe(self) -> Observation:
        images = {camera: self.render(camera) for camera in self.benchmark.cameras}
        return {"state": np.concatenate([self.position, self.goal]).astype(np.float32), **images}

    def render(self, camera: str) -> NDArray[np.uint8]:
        size = self.benchmark.image_size
        image = np.zeros((size, size, 3), np.uint8)
        image[tuple(np.clip(self.position * size / 4 + size / 2, 0, size - 1).astype(int))] = 255
        return image

    def expert_action(self) -> NDArray[np.float32]:
        return np.clip((self.goal - self.position) / 0.05, -1, 1).astype(np.float32)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Plane(Benchmark):
    environment_type: ClassVar[type] = PlaneEnvironment
    kind: Literal["plane"] = field(default="plane", kw_only=True)
    cameras: tuple[str, ...] = ()
    image_size: int = 16

    def __post_init__(self) -> None:
        if not {*self.cameras} <= {CAMERA}:
            raise ValueError(f"the plane has only {CAMERA}")

    @property
    def spec(self) -> EnvironmentSpec:
        return EnvironmentSpec("the plane", 2, {"state": 4}, {CAMERA: (self.image_size, self.image_size, 3)})

    @property
    def tasks(self) -> tuple[str, ...]:
        return ("near", "far")

    def instruction(self, task: str) -> str:
        require_task(task, self.tasks, "the plane")
        return f"go to the {task} goal"

    def make(self, task: str) -> PlaneEnvironment:
        require_task(task, self.tasks, "the plane")
        return self.environment_type(self)

    def draw_initial_state(self, task: str, seed: tuple[int, ...]) -> NDArray[np.float64]:
        require_task(task, self.tasks, "the plane")
        return np.random.default_rng(seed).uniform(-1, 1, 4)

    def with_cameras(self, cameras: tuple[str, ...]) -> "Plane":
        return replace(self, cameras=cameras)

    def with_rendering(self, *, image_size: int | None = None, rendering: Rendering | None = None) -> "Plane":
        return replace(self, image_size=image_size or self.image_size)

    def move_objects(
        self, task: str, initial_state: Any, *, std_m: float, seed: tuple[int, ...]
    ) -> NDArray[np.float64]:
        return initial_state + std_m * np.random.default_rng(seed).standard_normal(4)


class WithoutExpert:
    __init__ = PlaneEnvironment.__init__
    reset = PlaneEnvironment.reset
    step = PlaneEnvironment.step
    observe = PlaneEnvironment.observe
    close = PlaneEnvironment.close


@dataclass(frozen=True)
class Line(Benchmark):
    """Without cameras, expert and movable objects."""

    kind: Literal["line"] = field(default="line", kw_only=True)

    spec = EnvironmentSpec("the line", 2, {"state": 4})
    tasks = ("near",)

    def instruction(self, task: str) -> str:
        return Plane().instruction(task)

    def make(self, task: str) -> "WithoutExpert":  # type: ignore[override]  # not an environment on purpose
        require_task(task, self.tasks, "the line")
        return WithoutExpert(Plane())

    def draw_initial_state(self, task: str, seed: tuple[int, ...]) -> NDArray[np.float64]:
        return Plane().draw_initial_state(task, seed)


def failures(benchmark: Benchmark, task: str | None = None) -> dict[str, str]:
    """The checks that failed; those that could not be run for that reason are left out."""
    failed = {result.name: result.error for result in check_benchmark(benchmark, task) if result.error is not None}
    return {name: error for name, error in failed.items() if not error.startswith(NOT_CHECKED)}


def changed(**attributes: object) -> Plane:
    """A plane that differs in some class attributes, and can be pickled."""
    cls = type("Changed", (Plane,), {"__module__": __name__, **attributes})
    globals()["Changed"] = cls
    return cls()


@pytest.mark.parametrize("benchmark", [Plane(), Plane(cameras=(CAMERA,))])
def test_a_conforming_benchmark_passes_every_check(benchmark: Benchmark) -> None:
    results = check_benchmark(benchmark)
    assert [result for result in results if result.error is not None] == []
    assert len({result.name for result in results}) == len(results) == 28


def test_what_a_benchmark_does_not_offer_is_not_checked() -> None:
    names = {result.name for result in check_benchmark(Line())}
    assert failures(Line()) == {}
    assert names < {result.name for result in check_benchmark(Plane())}
    assert not any(word in name for name in names for word in ("camera", "render", "expert", "move_objects"))


@pytest.mark.sim
def test_metaworld_passes_every_check_with_its_camera() -> None:
    benchmark = MetaWorld(image_size=64, rendering="fast")
    results = check_benchmark(benchmark, "drawer-open-v3")
    assert [result for result in results if result.error is not None] == []
    assert len(results) == 28


class KeepsState(PlaneEnvironment):
    def reset(self, initial_state: NDArray[np.float64]) -> None:
        drift = 0.1 * self.position
        super().reset(initial_state)
        self.position += drift


class Unclipped(PlaneEnvironment):
    def step(self, action: NDArray[np.float32]) -> bool:
        self.position += 0.05 * action
        return False


class AlwaysRenders(PlaneEnvironment):
    def observe(self) -> Observation:
        return {**super().observe(), CAMERA: self.render(CAMERA)}


class MovesWhenRendered(PlaneEnvironment):
    def render(self, camera: str) -> NDArray[np.uint8]:
        image = super().render(camera)
        self.goal += 1e-3
        return image


class UpsideDown(PlaneEnvironment):
    def observe(self) -> Observation:
        return {name: array[::-1] if name == CAMERA else array for name, array in super().observe().items()}


class Unseeded(PlaneEnvironment):
    def reset(self, initial_state: NDArray[np.float64]) -> None:
        super().reset(initial_state)
        self.position += 1e-3 * np.random.rand(2)


class DoubleSensors(PlaneEnvironment):
    def observe(self) -> Observation:
        return {name: array.astype(float) if name == "state" else array for name, array in super().observe().items()}


class NumpyBool(PlaneEnvironment):
    def step(self, action: NDArray[np.float32]) -> bool:
        return np.bool_(super().step(action))  # type: ignore[return-value]  # what is broken here


class Aliasing(PlaneEnvironment):
    def __init__(self, benchmark: "Plane"):
        super().__init__(benchmark)
        self.buffer = np.zeros(4, np.float32)

    def observe(self) -> Observation:
        observation = super().observe()
        self.buffer[:] = observation["state"]
        return {**observation, "state": self.buffer}


class Overwriting(PlaneEnvironment):
    def step(self, action: NDArray[np.float32]) -> bool:
        return super().step(np.clip(action, -1, 1, out=action))


class BoldExpert(PlaneEnvironment):
    def expert_action(self) -> NDArray[np.float32]:
        return 20 * super().expert_action()


class Unclosable(PlaneEnvironment):
    def close(self) -> None:
        raise RuntimeError("closed twice")


BROKEN = {
    KeepsState: (
        "reset makes a used environment equal to a fresh one",
        "after 0 of the same steps the observation differs: state differs by up to 0.",
    ),
    Unclipped: ("step clips actions to [-1, 1]", "after 1 of the same steps the observation differs"),
    AlwaysRenders: ("an observation holds no image that was not asked for", "with_cameras(()) observes top_rgb"),
    MovesWhenRendered: ("rendering changes nothing in the simulation", "after 0 steps with images the observation"),
    UpsideDown: ("an image in an observation equals what render returns", "render('top_rgb') differs"),
    Unseeded: ("an episode depends on its initial state and actions alone", "after 0 of the same steps"),
    DoubleSensors: (
        "an observation holds float32 sensors as in the spec",
        "an observation state is float64 (4,), not float32 (4,)",
    ),
    NumpyBool: ("step returns a bool", "it returned np.False_ of type numpy.bool"),
    Aliasing: ("an observation stays as it is when the environment is stepped", "an earlier observation has changed"),
    Overwriting: ("step clips actions to [-1, 1]", "step changed the array of the action"),
    BoldExpert: ("the scripted expert's actions are float32 and within [-1, 1]", "the action is [20.0, -20.0]"),
    Unclosable: ("close ends one environment and leaves the others working", "RuntimeError: closed twice"),
}


@pytest.mark.parametrize("environment", BROKEN, ids=lambda environment: environment.__name__)
def test_a_broken_environment_fails_the_check_that_names_its_fault_and_no_other(
    environment: type[PlaneEnvironment],
) -> None:
    name, error = BROKEN[environment]
    failed = failures(changed(environment_type=environment))
    assert error in failed.pop(name)
    assert failed == {}


def draw_unseeded(self: Plane, task: str, seed: tuple[int, ...]) -> NDArray[np.float64]:
    require_task(task, self.tasks, "the plane")
    return np.random.rand(4)


def draw_one(self: Plane, task: str, seed: tuple[int, ...]) -> NDArray[np.float64]:
    require_task(task, self.tasks, "the plane")
    return np.ones(4)


def draw_list(self: Plane, task: str, seed: tuple[int, ...]) -> list[float]:
    require_task(task, self.tasks, "the plane")
    return [0.0, 0.0, 1.0, 1.0]


BROKEN_VALUES: dict[str, tuple[dict[str, Any], str, str]] = {
    "unseeded states": (
        {"draw_initial_state": draw_unseeded},
        "the same seed draws the same initial state",
        "and again",
    ),
    "one state": ({"draw_initial_state": draw_one}, "another seed draws another initial state", "both drew [1.0, 1.0"),
    "a list as state": (
        {"draw_initial_state": draw_list},
        "an initial state is 1-D, float64 and finite",
        "the state is [0.0, 0.0, 1.0, 1.0], not float64 (any)",
    ),
    "no rate": (
        {"spec": EnvironmentSpec("the plane", 2, {"state": 4}, control_hz=0.0)},
        "its spec has a name and positive sizes and rates",
        "spec.control_hz must be above 0 and finite, not 0.0",
    ),
    "a task twice": (
        {"tasks": ("near", "far", "near")},
        "it has tasks, each with a name of its own and an instruction",
        "tasks has more than one near",
    ),
    "any task": (
        {"instruction": lambda self, task: f"go {task}"},
        "an unknown task raises ValueError",
        "instruction of task 'no such name' returned 'go no such name' instead of raising ValueError",
    ),
    "a foreign task set": (
        {"task_sets": {"all": ("near", "middle")}},
        "its task sets hold its tasks",
        "task_sets['all'] holds middle, not in tasks",
    ),
    "an absolute path": (
        {"demonstration_path": lambda self, task: Path("/data") / task},
        "each task's demonstration path is relative and its own",
        "the path of near must be relative and without .., not /data/near",
    ),
    "cameras that are not added": (
        {"with_cameras": lambda self, cameras: self if {*cameras} <= {CAMERA} else Plane(cameras=cameras)},
        "with_cameras adds the images of those cameras alone",
        "with_cameras(('top_rgb',)) has cameras ()",
    ),
    "any camera": (
        {"__post_init__": lambda self: None},
        "with_cameras refuses an unknown camera with ValueError",
        "instead of raising ValueError",
    ),
    "images of one size": (
        {"with_rendering": lambda self, **_: self},
        "with_rendering changes the size of the images",
        "with_rendering(image_size=32) has top_rgb of shape (16, 16, 3)",
    ),
    "objects that always move": (
        {"move_objects": lambda self, task, state, **_: state + 1e-3},
        "move_objects depends on its seed alone and moves nothing by 0 m",
        "by 0 m it moved ",
    ),
}


@pytest.mark.parametrize("case", BROKEN_VALUES)
def test_a_broken_benchmark_fails_the_check_that_names_its_fault_and_no_other(case: str) -> None:
    attributes, name, error = BROKEN_VALUES[case]
    failed = failures(changed(**attributes))
    assert list(failed) == [name]
    assert error in failed[name]


def test_objects_that_cannot_be_moved_are_no_fault() -> None:
    def refuse(self: Plane, task: str, initial_state: object, **_: object) -> None:
        raise ValueError("the plane has no objects")

    assert failures(changed(move_objects=refuse)) == {}


def test_a_benchmark_that_cannot_be_pickled_or_written_is_found() -> None:
    @dataclass(frozen=True)
    class Local(Plane):
        scale: object = field(default_factory=lambda: np.float32)

    failed = failures(Local())
    assert "Local" in failed["it equals its pickled copy"]
    assert "it equals what is read from its JSON" in failed


def test_what_cannot_be_checked_names_the_check_that_it_needs() -> None:
    def make(self: Plane, task: str) -> None:
        require_task(task, self.tasks, "the plane")
        raise OSError("no simulator")

    results = {result.name: result.error for result in check_benchmark(changed(make=make))}
    runs = "its environment is reset, stepped and observed"
    assert results[runs] == "OSError: no simulator"
    waiting = [error for name, error in results.items() if error is not None and name != runs]
    assert len(waiting) > 10
    assert all(error.startswith(f"{NOT_CHECKED}it needs ") for error in waiting)
    assert results["step returns a bool"] == f'{NOT_CHECKED}it needs "{runs}"'


def test_another_task_can_be_checked_and_an_unknown_one_is_refused() -> None:
    assert failures(Plane(), "far") == {}
    with pytest.raises(ValueError, match="no task 'fra': did you mean far"):
        check_benchmark(Plane(), "fra")
