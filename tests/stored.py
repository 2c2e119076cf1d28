"""A line that is seen by a camera, with demonstrations in files, whose images are read when they are needed."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from ript_envs.contract import EnvironmentSpec, Observation
from ript_ray.config.data import Demonstrations
from ript_ray.config.experiment import Experiment, register
from ript_ray.config.rl import Evaluation
from ript_ray.data.dataset import load_dataset
from ript_ray.data.demonstrations import record_demonstrations
from ript_ray.data.hdf5 import NAMES_IN_FILES
from ript_ray.policies.base import PolicyConfig
from ript_ray.policies.quest.config import QuestSFT
from ript_ray.policies.supervised import Augmentation, SupervisedStage, Windows
from tests.conftest import TINY_QUEST
from tests.fakes import LineBenchmark, LineEnvironment

IMAGE_SIZE = 24
NUM_DEMONSTRATIONS = 3
SEEING = replace(TINY_QUEST, cameras=("front",), image_size=16, image_channels=4, image_width=8, dropout=0.2)


@dataclass(frozen=True)
class SeenLine(LineBenchmark):
    """The camera `front` shows a bar that reaches from one side to the point, on a noisy ground."""

    kind: Literal["seen-line"] = field(default="seen-line", kw_only=True)  # type: ignore[assignment]
    seen: tuple[str, ...] = ()

    @property
    def spec(self) -> EnvironmentSpec:
        return replace(super().spec, image_shapes={"front": (IMAGE_SIZE, IMAGE_SIZE, 3)})

    @property
    def cameras(self) -> tuple[str, ...]:
        return self.seen

    def with_cameras(self, cameras: tuple[str, ...]) -> Self:
        return replace(self, seen=cameras)

    def make(self, task: str) -> "SeenEnvironment":
        return SeenEnvironment(self.seen)


class SeenEnvironment(LineEnvironment):
    def __init__(self, cameras: tuple[str, ...]) -> None:
        super().__init__()
        self._cameras = cameras

    def observe(self) -> Observation:
        return super().observe() | {camera: self.render(camera) for camera in self._cameras}

    def render(self, camera: str) -> NDArray[np.uint8]:
        column = int((self._position + 1.2) * 10)
        image = np.random.default_rng(column).integers(0, 100, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        image[:, :column] = 200
        return image


register(SeenLine)


def write_files(folder: Path) -> Path:
    """Write a file of demonstrations per task, and return their folder."""
    benchmark = SeenLine(seen=("front",))
    settings = Demonstrations(num_per_task=NUM_DEMONSTRATIONS, action_noise=0.2)
    for task in benchmark.tasks:
        path = folder / benchmark.demonstration_path(task).name
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            made = record_demonstrations(benchmark, task, settings=settings, max_steps=12, seed=0)
            for number, demonstration in enumerate(made):
                group = file.create_group(f"data/demo_{number}")
                group["actions"] = demonstration.actions_TA
                for name, rows in demonstration.observations.items():
                    values = np.asarray(rows)
                    packing = {"chunks": (1, *values.shape[1:]), "compression": "gzip"} if values.ndim == 4 else {}
                    group.create_dataset(f"obs/{NAMES_IN_FILES.get(name, name)}", data=values, **packing)
    return folder


def corrupt_images(folder: Path) -> Path:
    """Overwrite the compressed images of a file with zeros: it opens, but they cannot be read. Returns the file."""
    path = folder / SeenLine().demonstration_path("left").name
    with h5py.File(path) as file:
        images = [file[f"data/demo_{number}/obs/front"] for number in range(NUM_DEMONSTRATIONS)]
        chunks = [array.id.get_chunk_info(index) for array in images for index in range(len(array))]
    with path.open("r+b") as raw:
        for chunk in chunks:
            raw.seek(chunk.byte_offset)
            raw.write(bytes(chunk.size))
    return path


def stored_windows(folder: Path, policy: PolicyConfig) -> Windows:
    """Return the windows of the files, whose images are read on demand."""
    settings = Demonstrations(folder=folder, num_per_task=NUM_DEMONSTRATIONS, max_memory_bytes=0)
    return load_dataset(
        *(SeenLine(), SeenLine().tasks), settings=settings, policy=policy, cameras=("front",), max_steps=12, seed=0
    ).training


def stored_experiment(folder: Path, num_steps: int = 12) -> Experiment:
    """Return an experiment that trains both stages of a small QueST on the files."""
    stage = SupervisedStage(num_steps=num_steps, batch_size=8, learning_rate=1e-2, checkpoint_every=5)
    return Experiment(
        "stored",
        SeenLine().tasks,
        benchmark=SeenLine(),
        policy=SEEING,
        demos=Demonstrations(folder=folder, num_per_task=2, num_held_out=1, max_memory_bytes=0),
        sft=QuestSFT(autoencoder=replace(stage, num_steps=4), prior=stage, augmentation=Augmentation()),
        stages=("autoencoder", "prior"),
        evaluation=Evaluation(contexts_per_task=1),
        max_steps=12,
    )
