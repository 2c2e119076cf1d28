"""Configuration of MetaWorld: tasks, sizes and files. The simulator is imported only when it is needed.

Source: Yu et al. 2019 (Meta-World); the package `metaworld` 3.x. Camera, robot state and episode end as in QueST (Mete
et al. 2024).
"""

import importlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import Benchmark, Environment, EnvironmentSpec, Rendering, require_package, require_task
from ript_envs.gl import require_gl
from ript_envs.metaworld.tasks import ML45_HELD_OUT, ML45_TRAIN, QUEST_TASK_ORDER

STATE_DIMS = {"state": 39, "relative": 10, "robot_states": 8}
"""Length of each sensor; their entries are described in `ript_envs.metaworld.environment`."""

CAMERAS = ("corner_rgb",)
"""The camera that the papers' policies read."""

GOAL_DECIDES = frozenset(
    {
        "plate-slide-back-side-v3",
        "plate-slide-back-v3",
        "plate-slide-side-v3",
        "plate-slide-v3",
        "reach-v3",
        "reach-wall-v3",
    }
)
"""Tasks whose first position decides nothing: the puck of `reach` is not the one to reach, and the plate of
`plate-slide` starts where the simulator's model has it. Their goal, the second position, does."""

MAX_MOVES = 100
"""Limit on draws of noise until an initial state is valid."""


@dataclass(frozen=True)
class MetaWorld(Benchmark):
    """MetaWorld v3, 50 tabletop tasks of one Sawyer arm.

    Attributes:
        kind: The benchmark's name in configuration files.
        goal_visible: Whether the goal position is part of the observation, or three zeros.
        cameras: Cameras whose images are part of the observation: corner_rgb or none.
        image_size: Height and width of the images, in pixels, at least 1. Source: QueST, 128.
        rendering: Image quality: full (the simulator's own, as in QueST) or fast (no shadows, reflections or
            anti-aliasing).
    """

    kind: Literal["metaworld"] = field(default="metaworld", kw_only=True)
    goal_visible: bool = True
    cameras: tuple[str, ...] = ()
    image_size: int = 128
    rendering: Rendering = "full"

    def __post_init__(self) -> None:
        for camera in self.cameras:
            if camera not in CAMERAS:
                raise ValueError(f"MetaWorld has no camera {camera!r}; it has {', '.join(CAMERAS)}")
        if self.image_size < 1:
            raise ValueError(f"image-size must be at least 1 pixel, not {self.image_size}")
        if self.rendering not in get_args(Rendering):
            raise ValueError(f"rendering must be one of {', '.join(get_args(Rendering))}, not {self.rendering!r}")

    @property
    def spec(self) -> EnvironmentSpec:
        return EnvironmentSpec(
            name="MetaWorld",
            action_dim=4,
            state_dims=dict(STATE_DIMS),
            image_shapes=dict.fromkeys(CAMERAS, (self.image_size, self.image_size, 3)),
            control_hz=80.0,  # five simulator steps of 2.5 ms
            max_steps=500,
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(sorted(QUEST_TASK_ORDER))

    @property
    def task_sets(self) -> dict[str, tuple[str, ...]]:
        return {"ml45-train": ML45_TRAIN, "ml45-test": ML45_HELD_OUT}

    @property
    def packages(self) -> tuple[str, ...]:
        return ("metaworld", "mujoco")

    def require_installed(self) -> None:
        require_package("metaworld", extra="metaworld", name="MetaWorld")
        require_package("mujoco", extra="metaworld", name="MuJoCo")

    @property
    def render_settings(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "rendering": self.rendering}

    def with_cameras(self, cameras: tuple[str, ...]) -> "MetaWorld":
        return replace(self, cameras=cameras)

    def with_rendering(self, *, image_size: int | None = None, rendering: Rendering | None = None) -> "MetaWorld":
        return replace(self, image_size=image_size or self.image_size, rendering=rendering or self.rendering)

    def instruction(self, task: str) -> str:
        """Return the words of the task's name, `drawer-open-v3` -> `drawer open` (MetaWorld has no instructions)."""
        require_task(task, self.tasks, "MetaWorld")
        return task.removesuffix("-v3").replace("-", " ")

    def make(self, task: str) -> Environment:
        require_task(task, self.tasks, "MetaWorld")
        return self._simulator().MetaWorldEnvironment(task, self)

    def draw_initial_state(self, task: str, seed: tuple[int, ...]) -> NDArray[np.float64]:
        """Draw the task's reset vector (object and goal positions in metres) as the simulator does."""
        require_task(task, self.tasks, "MetaWorld")
        return self._simulator().drawing_environment(task).draw_initial_state(seed)

    def move_objects(
        self, task: str, initial_state: NDArray[np.float64], *, std_m: float, seed: tuple[int, ...]
    ) -> NDArray[np.float64]:
        """Move the task's first object horizontally, or its goal if only that decides the task; nothing else moves."""
        if std_m < 0:
            raise ValueError(f"the noise on initial states must be at least 0 m, not {std_m}")
        require_task(task, self.tasks, "MetaWorld")
        environment, generator = self._simulator().drawing_environment(task), np.random.default_rng(seed)
        x_and_y = slice(3, 5) if task in GOAL_DECIDES else slice(0, 2)
        for _ in range(MAX_MOVES):
            moved = np.array(initial_state, dtype=np.float64)
            moved[x_and_y] += std_m * generator.standard_normal(2)
            if environment.allows(moved):
                return moved
        raise ValueError(f"{task} allows none of {MAX_MOVES} states {std_m:g} m around {initial_state.tolist()}")

    def demonstration_path(self, task: str) -> Path:
        """Return the path that QueST's loader expects: in metaworld/ML45_PRISE, under train or test."""
        split = "test" if task in ML45_HELD_OUT else "train"
        return Path("metaworld", "ML45_PRISE", split, f"{task}.hdf5")

    def _simulator(self) -> ModuleType:
        """Import the environments, and MuJoCo with them.

        Raises:
            MissingPackageError: MetaWorld or MuJoCo is not installed.
            RenderingError: MUJOCO_GL keeps MuJoCo from being imported.
        """
        self.require_installed()
        require_gl()
        return importlib.import_module("ript_envs.metaworld.environment")
