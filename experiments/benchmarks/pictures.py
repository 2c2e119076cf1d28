"""Where does the time of a picture of full quality go without a GPU, and how much of it is spared?

Question: how much processor time does a picture take, drawn by MuJoCo as in the stock environments, and by our
    renderer, with the same pixels? Which shares have the shadow map, reflections, smooth edges, the meshes and the sky?
Method: one process, processor time of all its threads, since a software renderer has its own; ways in turn in every
    round, after each of which the scene has moved on by eight steps of random actions. A way switches one thing off in
    MuJoCo's own drawing. Ratios to MuJoCo's full picture within a round: minimum, median and maximum over the rounds.
    Pixels of ours that differ from MuJoCo's are counted, over all rounds.
Expected: no pixel differs. In MetaWorld ours takes 0.55 to 0.7 of MuJoCo's time, of which the shadow map was half; from
    LIBERO's hand 0.55 to 0.9, and from its front view, where nearly all is in view, 0.75 to 1.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import mujoco
import numpy as np
import tyro
from numpy.typing import NDArray
from rich.progress import track

from experiments.benchmarks.timed import extremes, print_table
from ript_envs.contract import Environment
from ript_envs.libero.benchmark import Libero, Suite
from ript_envs.libero.environment import CAMERA_NAMES, COLLISION_SHAPES, LiberoEnvironment
from ript_envs.metaworld.benchmark import MetaWorld
from ript_envs.metaworld.environment import CAMERA_POSES, MetaWorldEnvironment
from ript_envs.rendering import OffscreenRenderer, _make_context_current

STEPS = 8
"""Steps between pictures."""

Image = NDArray[np.uint8]

Edit = Callable[[mujoco.MjvScene], None]


@dataclass(frozen=True)
class Options:
    """Sizes of the benchmark.

    Attributes:
        tasks: Tasks of MetaWorld.
        suites: Suites of LIBERO, of which the first task is drawn.
        rounds: Rounds, each of which takes every way in turn.
    """

    tasks: tuple[str, ...] = ("pick-place-v3", "window-open-v3", "hammer-v3")
    suites: tuple[Suite, ...] = ("libero_object", "libero_goal")
    rounds: int = 8


class StockRenderer(OffscreenRenderer):
    """MuJoCo's own drawing of full quality, of which a thing can be switched off."""

    def __init__(self, model: mujoco.MjModel, size: int, hidden_groups: tuple[int, ...] = (), edit: Edit | None = None):
        """Load meshes and textures; `edit` is called with each scene."""
        super().__init__(model, size=size, rendering="full", hidden_groups=hidden_groups)
        self._edit = edit

    def draw(self, model: mujoco.MjModel, data: mujoco.MjData, camera: int) -> Image:
        """Return the image of a camera, as `OffscreenRenderer` does."""
        _make_context_current()
        self._camera.fixedcamid = camera
        self._update_scene(model, data)
        if self._edit is not None:
            self._edit(self._scene)
        return self._render()


@dataclass(frozen=True)
class View:
    """What pictures are drawn of: an environment in motion, and one of its cameras."""

    name: str
    environment: Environment
    model: mujoco.MjModel
    data: mujoco.MjData
    camera: str
    size: int
    hidden_groups: tuple[int, ...] = ()


@dataclass
class Times:
    """Seconds of each picture by way, and pixels in which ours differed."""

    by_way: dict[str, list[float]] = field(default_factory=dict)
    num_different: int = 0


def views(options: Options) -> Iterator[View]:
    """Build the environments, one after the other."""
    benchmark = MetaWorld()
    for task in options.tasks:
        environment = benchmark.make(task)
        assert isinstance(environment, MetaWorldEnvironment)
        environment.reset(benchmark.draw_initial_state(task, (0,)))
        sim, (camera, _) = environment._sim, CAMERA_POSES["corner_rgb"]
        yield View(task.removesuffix("-v3"), environment, sim.model, sim.data, camera, benchmark.image_size)
    for suite in options.suites:
        libero = Libero(suite)
        environment = libero.make(libero.tasks[0])
        assert isinstance(environment, LiberoEnvironment)
        environment.reset(libero.evaluation_states(libero.tasks[0])[0])
        view = View(suite, environment, environment._model, environment._data, "", libero.image_size)
        for camera in CAMERA_NAMES.values():
            yield replace(view, name=f"{suite}, {camera}", camera=camera, hidden_groups=(COLLISION_SHAPES,))


def without(flag: mujoco.mjtRndFlag) -> Edit:
    """Return an edit that switches a flag of MuJoCo's off."""

    def edit(scene: mujoco.MjvScene) -> None:
        scene.flags[flag] = False

    return edit


def without_casting(*kinds: mujoco.mjtGeom) -> Edit:
    """Return an edit after which geoms of these kinds, or all if there are none, are not drawn in the shadow map."""
    return _with_geoms(kinds, category=mujoco.mjtCatBit.mjCAT_DECOR)


def without_kinds(*kinds: mujoco.mjtGeom) -> Edit:
    """Return an edit after which geoms of these kinds, or all if there are none, are not drawn at all."""
    return _with_geoms(kinds, type=mujoco.mjtGeom.mjGEOM_NONE)


def _with_geoms(kinds: Sequence[mujoco.mjtGeom], **changes: int) -> Edit:
    def edit(scene: mujoco.MjvScene) -> None:
        for geom in scene.geoms[: scene.ngeom]:
            if not kinds or geom.type in kinds:
                for name, value in changes.items():
                    setattr(geom, name, value)

    return edit


def renderers(view: View) -> dict[str, OffscreenRenderer]:
    """Return MuJoCo's renderer, ours, and MuJoCo's without one thing each."""
    kinds, flags = mujoco.mjtGeom, mujoco.mjtRndFlag
    edits: dict[str, Edit | None] = {
        "MuJoCo": None,
        "no shadows": without(flags.mjRND_SHADOW),
        "empty map": without_casting(),
        "no plane in it": without_casting(kinds.mjGEOM_PLANE),
        "no mesh in it": without_casting(kinds.mjGEOM_MESH),
        "no reflection": without(flags.mjRND_REFLECTION),
        "no sky": without(flags.mjRND_SKYBOX),
        "no meshes": without_kinds(kinds.mjGEOM_MESH),
        "nothing": without_kinds(),
    }
    built: dict[str, OffscreenRenderer] = {
        way: StockRenderer(view.model, view.size, view.hidden_groups, edit) for way, edit in edits.items()
    }
    quality = view.model.vis.quality
    before = quality.shadowsize, quality.offsamples
    quality.shadowsize = before[0] // 4
    built["map of 1/16"] = StockRenderer(view.model, view.size, view.hidden_groups)
    quality.shadowsize, quality.offsamples = before[0], 0
    built["rough edges"] = StockRenderer(view.model, view.size, view.hidden_groups)
    quality.offsamples = before[1]
    ours = OffscreenRenderer(view.model, size=view.size, rendering="full", hidden_groups=view.hidden_groups)
    return {"MuJoCo": built.pop("MuJoCo"), "ours": ours, **built}


def measure(view: View, rounds: int) -> Times:
    """Return the times of each round; a first one is not counted."""
    ways = renderers(view)
    times = Times({way: [] for way in ways})
    generator = np.random.default_rng(0)
    num_actions = 4 if isinstance(view.environment, MetaWorldEnvironment) else 7
    for _ in range(1 + rounds):
        for _ in range(STEPS):
            view.environment.step(generator.uniform(-1, 1, num_actions).astype(np.float32))
        images = {}
        for way, renderer in ways.items():
            begin_s = time.process_time()
            images[way] = renderer.draw(view.model, view.data, view.model.camera(view.camera).id)
            times.by_way[way].append(time.process_time() - begin_s)
        times.num_different += int((images["ours"] != images["MuJoCo"]).any(axis=-1).sum())
    return Times({way: seconds[1:] for way, seconds in times.by_way.items()}, times.num_different)


def main(options: Options) -> None:
    """Run the benchmark and print the table."""
    for view in track(views(options), "views"):
        times = measure(view, options.rounds)
        stock = times.by_way["MuJoCo"]
        rows = [
            (way, _figures(seconds, [1e-3] * len(seconds)), _figures(seconds, stock))
            for way, seconds in times.by_way.items()
        ]
        title = f"{view.name}, {options.rounds} pictures; {times.num_different} pixels differ"
        print_table(title, ("", "ms: minimum, median, maximum", "of MuJoCo's time"), rows)


def _figures(seconds: Sequence[float], units: Sequence[float]) -> str:
    ratios = [one / unit for one, unit in zip(seconds, units, strict=True)]
    return " ".join(f"{ratio:.3g}" for ratio in extremes(ratios))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
