"""How much sooner is a supervised step done because what it learns from was read ahead?

Question: how long does a step of OpenVLA-OFT's supervised stages take if it reads its windows first, and if threads
    read them ahead of it?
Method: an HDF5 file of camera images, one compressed frame per chunk as our recorder writes them, read on demand; the
    stage's own reader makes of them what the network reads (rotation, JPEG round trip, Lanczos resize to 224 pixels,
    prompts). The step sleeps, which stands in for a GPU, or takes no time, which shows how fast reading alone is. The
    first steps are not measured. Rounds take the ways in turns; what is read is compared to the bit.
Expected: reading ahead, a step takes as long as the longer one of reading and the GPU, no longer both; reading alone is
    faster only where there are idle cores.
"""

import tempfile
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
import tyro

from experiments.benchmarks.timed import extremes, print_table
from ript_envs.contract import EnvironmentSpec
from ript_ray.data.demonstrations import Demonstration
from ript_ray.data.hdf5 import read_demonstrations
from ript_ray.data.windows import make_windows
from ript_ray.policies.openvla_oft.architecture import NewModel
from ript_ray.policies.openvla_oft.config import OpenVLAOFTConfig, OpenVLAOFTSFT
from ript_ray.policies.read_ahead import NUM_AHEAD
from ript_ray.policies.supervised import WindowBatch, WindowReader
from ript_ray.runtime.host import num_cpus

CAMERAS = ("front", "wrist")
CONFIG = OpenVLAOFTConfig(base="new", new=NewModel(image_size=224), cameras=CAMERAS, sensors=("robot",), chunk_length=8)


NUM_UNMEASURED = 2 * NUM_AHEAD
"""First steps, which are not measured."""


@dataclass(frozen=True)
class Options:
    """Sizes of the benchmark.

    Attributes:
        steps_s: Durations of a step without reading, in seconds.
        num_frames: Observations in the file.
        image_size: Height and width of its images, in pixels.
        batch_size: Windows per step.
        num_steps: Measured steps.
        rounds: Measurements per row.
    """

    steps_s: tuple[float, ...] = (0.0, 0.1)
    num_frames: int = 200
    image_size: int = 256
    batch_size: int = 8
    num_steps: int = 24
    rounds: int = 5


def write_images(path: Path, options: Options) -> None:
    """Write a demonstration of random, coarse images."""
    generator = np.random.default_rng(0)
    coarse_shape = (options.num_frames, options.image_size // 8, options.image_size // 8, 3)
    with h5py.File(path, "w") as file:
        group = file.create_group("data/demo_0")
        group["actions"] = generator.uniform(-1, 1, (options.num_frames, 7)).astype(np.float32)
        group["obs/robot"] = generator.normal(size=(options.num_frames, 8)).astype(np.float32)
        for camera in CAMERAS:
            coarse = generator.integers(0, 240, coarse_shape, np.uint8).repeat(8, axis=1).repeat(8, axis=2)
            images = coarse + generator.integers(0, 4, coarse.shape, np.uint8)
            packing = {"chunks": (1, *images.shape[1:]), "compression": "gzip", "compression_opts": 1}
            group.create_dataset(f"obs/{camera}", data=images, **packing)


def reader_of(path: Path) -> WindowReader:
    """Return the reader of OpenVLA-OFT's first stage for a file whose images are read on demand."""
    read: tuple[Demonstration, ...] = read_demonstrations(
        path, instruction="open the drawer", sensors=("robot", *CAMERAS), on_demand=True
    )
    windows = make_windows(read, CONFIG.chunk_length)
    size = (256, 256, 3)
    spec = EnvironmentSpec("robot", action_dim=7, state_dims={"robot": 8}, image_shapes=dict.fromkeys(CAMERAS, size))
    task, policy = OpenVLAOFTSFT().tasks()[0], CONFIG.build(spec)
    task.prepare(policy, windows)
    return task.reader(policy, windows)


def measure(batches: Iterable[WindowBatch], step_s: float) -> tuple[float, int]:
    """Return seconds per step, and a checksum of all that was read."""
    checksum, starts = 0, []
    for batch in batches:
        for _, values in sorted(batch.inputs.items()):
            checksum = zlib.crc32(values.numpy().tobytes(), checksum)
        time.sleep(step_s)
        starts.append(time.perf_counter())
    measured = starts[NUM_UNMEASURED - 1 :]
    return (measured[-1] - measured[0]) / (len(measured) - 1), checksum


def main(options: Options) -> None:
    """Measure and print."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.hdf5"
        write_images(path, options)
        reader = reader_of(path)
        shape = (NUM_UNMEASURED + options.num_steps, options.batch_size)
        order = torch.from_numpy(np.random.default_rng(0).integers(len(reader.windows), size=shape))
        for step_s in options.steps_s:
            times = []
            for _ in range(options.rounds):
                in_turn_s, expected = measure(map(reader.read, order), step_s)
                ahead_s, found = measure(reader.batches(order), step_s)
                assert found == expected, "what is read depends on the threads"
                times.append((in_turn_s, ahead_s, in_turn_s / ahead_s))
            figures = [extremes(values) for values in zip(*times, strict=True)]
            cells = [
                " ".join(f"{scale * figure:{form}}" for figure in each)
                for each, scale, form in zip(figures, (1e3, 1e3, 1.0), (".0f", ".0f", ".2f"), strict=True)
            ]
            rows.append((f"{1e3 * step_s:.0f}", *cells))
    title = f"{options.batch_size} windows of {len(CAMERAS)} images of {options.image_size} pixels, {num_cpus()} cores"
    print_table(title, ["GPU's part, ms", "read in turn, ms", "read ahead, ms", "times as fast"], rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
