"""Configuration of LIBERO: suites, sizes and files. The simulator is imported only when it is needed.

Source: Liu et al. 2023 (LIBERO); sensors, image size and episode length as in QueST (Mete et al. 2024).
"""

import importlib
import json
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import (
    Benchmark,
    DemonstrationLayout,
    Environment,
    EnvironmentSpec,
    Rendering,
    require_package,
    require_task,
)
from ript_envs.gl import require_gl
from ript_envs.libero import goals, perturbations, suites
from ript_envs.libero.installation import assets_folder
from ript_envs.libero.tasks import TASKS

STATE_DIMS = {"joint_states": 7, "ee_pos": 3, "ee_ori": 3, "gripper_states": 2}
"""Length of each sensor, named as in the official demonstrations: joint angles (rad), position of the hand (m), its
orientation (rotation vector, rad), and joint positions of the two fingers (m)."""

NUM_EVALUATION_STATES = 50
"""Init states of a task, as the benchmark has them."""

CAMERAS = ("agentview_rgb", "eye_in_hand_rgb")
"""The cameras that the papers' policies read, named as in the official demonstrations."""

Suite = Literal["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"]
Perturbation = Literal["none", "object", "position", "language", "task", "environment"]
ResetMode = Literal["settled", "legacy"]
SettleGripper = Literal["still", "open"]


@dataclass(frozen=True)
class Libero(Benchmark):
    """LIBERO, 130 tasks of one Panda arm in five suites.

    Attributes:
        kind: The benchmark's name in configuration files.
        suite: The suite, 10 tasks each, libero_90 90. libero_10 is the papers' LIBERO-Long.
        perturbation: What differs in every task from those of the suite, to evaluate on: object (other objects in place
            of its own), position (objects in each other's places), language (other words for the same), task (another
            goal in the same scene), environment (the same objects on the table of another room; five tasks of
            libero_10 are there already and are left out) or none. libero_90 has none. Source: LIBERO-PRO (Zhou et al.
            2025).
        cameras: Cameras whose images are part of the observation: agentview_rgb, eye_in_hand_rgb.
        image_size: Height and width of the images, in pixels, at least 1. Source: QueST, 128.
        rendering: Image quality: full (the simulator's own, as in published work) or fast (no shadows, reflections or
            anti-aliasing).
        simplified_meshes: Draw everything with a few hundred triangles: without a GPU, five to ten times as fast. Not
            for published checkpoints: they were trained with other images.
        small_textures: Draw with textures of 256 pixels at most, which takes less memory. Not for published
            checkpoints.
        reset_mode: settled: an episode begins after `settle_steps` steps without motion from the initial state.
            legacy: as in the released code of QueST and RIPT: the first observation is of another scene, drawn at
            random, and nothing settles.
        settle_steps: Environment steps without motion after a reset, at least 0. Source: released code, 10.
        settle_gripper: What the fingers do in these steps: still (they stay half open) or open. Source: released code,
            still for QueST, open for OpenVLA-OFT.
    """

    kind: Literal["libero"] = field(default="libero", kw_only=True)
    suite: Suite = "libero_spatial"
    perturbation: Perturbation = field(default="none", metadata={"before": "none"})
    cameras: tuple[str, ...] = ()
    image_size: int = 128
    rendering: Rendering = "full"
    simplified_meshes: bool = False
    small_textures: bool = False
    reset_mode: ResetMode = "settled"
    settle_steps: int = 10
    settle_gripper: SettleGripper = field(default="still", metadata={"before": "still"})

    def __post_init__(self) -> None:
        for camera in self.cameras:
            if camera not in CAMERAS:
                raise ValueError(f"LIBERO has no camera {camera!r}; it has {', '.join(CAMERAS)}")
        choices = {
            "suite": Suite,
            "perturbation": Perturbation,
            "rendering": Rendering,
            "reset_mode": ResetMode,
            "settle_gripper": SettleGripper,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in get_args(allowed):
                option = name.replace("_", "-")
                raise ValueError(f"{option} must be one of {', '.join(get_args(allowed))}, not {getattr(self, name)!r}")
        if self.suite == "libero_90" and self.perturbation != "none":
            raise ValueError(f"libero_90 has no perturbation {self.perturbation}; LIBERO-PRO perturbs the other suites")
        if self.image_size < 1:
            raise ValueError(f"image-size must be at least 1 pixel, not {self.image_size}")
        if self.settle_steps < 0:
            raise ValueError(f"settle-steps must be at least 0, not {self.settle_steps}")

    @property
    def spec(self) -> EnvironmentSpec:
        return EnvironmentSpec(
            name="LIBERO",
            action_dim=7,
            state_dims=dict(STATE_DIMS),
            image_shapes=dict.fromkeys(CAMERAS, (self.image_size, self.image_size, 3)),
            control_hz=20.0,  # 25 simulator steps of 2 ms
            max_steps=600,
            max_tasks=4,  # 1 GB each, with images; see experiments/benchmarks/libero.py
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        tasks = TASKS[self.suite]
        if self.perturbation != "environment":
            return tasks
        return tuple(task for task in tasks if not task.startswith(perturbations.NEW_ROOM))

    @property
    def label(self) -> str:
        return self.suite + perturbations.SUFFIXES[self.perturbation]

    @property
    def evaluation_fields(self) -> tuple[str, ...]:
        return ("suite", "perturbation", "reset_mode", "settle_steps", "settle_gripper")

    @property
    def packages(self) -> tuple[str, ...]:
        return (*suites.DISTRIBUTIONS, "robosuite", "mujoco")

    def require_installed(self) -> None:
        assets_folder()
        for module in ("robosuite", "mujoco", "numba"):
            require_package(module, extra="libero")

    @property
    def render_settings(self) -> dict[str, Any]:
        names = ("image_size", "rendering", "simplified_meshes", "small_textures")
        return {name: getattr(self, name) for name in names}

    @property
    def observes_bottom_up(self) -> bool:
        return True

    def with_cameras(self, cameras: tuple[str, ...]) -> "Libero":
        return replace(self, cameras=cameras)

    def with_rendering(self, *, image_size: int | None = None, rendering: Rendering | None = None) -> "Libero":
        return replace(self, image_size=image_size or self.image_size, rendering=rendering or self.rendering)

    def instruction(self, task: str) -> str:
        """Return the words of the task's name without its scene, as the benchmark does, unless they are perturbed."""
        require_task(task, self.tasks, self.label)
        if self.perturbation in ("language", "task"):
            return suites.stated_instruction(self.label, task)
        return suites.instruction(task)

    def make(self, task: str) -> Environment:
        require_task(task, self.tasks, self.label)
        return self._simulator().LiberoEnvironment(task, self)

    def evaluation_states(self, task: str) -> NDArray[np.float64]:
        """Return the benchmark's 50 init states of a task, on which papers evaluate.

        LIBERO-PRO has none of its tasks in another room; they are drawn, the same ones in every process.
        """
        require_task(task, self.tasks, self.label)
        if self.perturbation == "environment":
            return np.stack([self.draw_initial_state(task, (index,)) for index in range(NUM_EVALUATION_STATES)])
        return suites.init_states(self.label, task)

    def draw_initial_state(self, task: str, seed: tuple[int, ...]) -> NDArray[np.float64]:
        """Draw object positions as the simulator does; LIBERO's init states are drawn from the same distribution."""
        require_task(task, self.tasks, self.label)
        return self._simulator().drawing_environment(task, self).draw_initial_state((zlib.crc32(task.encode()), *seed))

    def move_objects(
        self, task: str, initial_state: NDArray[np.float64], *, std_m: float, seed: tuple[int, ...]
    ) -> NDArray[np.float64]:
        """Let every free object come to rest and move it horizontally; arm and furniture stay. 0 m changes nothing."""
        if std_m < 0:
            raise ValueError(f"the noise on initial states must be at least 0 m, not {std_m}")
        require_task(task, self.tasks, self.label)
        if std_m == 0:
            return initial_state.copy()
        environment = self._simulator().drawing_environment(task, self)
        return environment.move_objects(initial_state, std_m=std_m, generator=np.random.default_rng(seed))

    @property
    def task_sets(self) -> dict[str, tuple[str, ...]]:
        return {self.label: self.tasks, "scripted": self.tasks_with_expert}

    @property
    def tasks_with_expert(self) -> tuple[str, ...]:
        """The tasks whose goals are objects where the expert is known to put them; see `goals.CAN_DO`."""
        return tuple(task for task in self.tasks if goals.has_expert(self.label, task))

    def demonstration_layout(self, task: str) -> DemonstrationLayout:
        """Return the attributes of LIBERO's official files; their observations end before the last action."""
        problem = suites.problem_name(self.label, task)
        file = f"libero/libero/bddl_files/{self.label}/{task}.bddl"
        about = {"problem_name": problem, "domain_name": "robosuite", "language_instruction": self.instruction(task)}
        built = {"type": 1, "env_name": problem, "problem_name": problem, "bddl_file": file, "env_kwargs": {}}
        attributes = {
            "problem_info": json.dumps(about),
            "env_args": json.dumps(built),
            "env_name": problem,
            "bddl_file_name": file,
            "macros_image_convention": "opengl",  # bottom row first
        }
        return DemonstrationLayout(attributes, final_observation=False)

    def demonstration_path(self, task: str) -> Path:
        """Return the path of the official demonstrations below LIBERO's data folder."""
        return Path("libero", self.label, f"{task}_demo.hdf5")

    def _simulator(self) -> ModuleType:
        """Import the environments, and robosuite and MuJoCo with them.

        Raises:
            MissingPackageError: LIBERO or what it needs is not installed.
            RenderingError: MUJOCO_GL keeps MuJoCo from being imported.
        """
        self.require_installed()
        require_gl()
        return importlib.import_module("ript_envs.libero.environment")
