"""Videos of past rollouts: the same actions again, in a separate simulator that is rendered.

Rendering never touches the simulators that a policy acts in: the rollout is repeated, its actions are kept, and
a second simulator steps through them. Simulators are deterministic to the bit, so it shows the same.
"""

import contextlib
import io
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ript_envs.contract import Benchmark, Rendering
from ript_ray.checks import require, require_between
from ript_ray.errors import ReplayError
from ript_ray.rl.parts import join_summaries, split
from ript_ray.rl.protocols import Components
from ript_ray.rl.rollout_worker import RolloutWorker
from ript_ray.storage.atomic import atomic_write, os_errors_as_storage_error
from ript_ray.types import Context, GroupSummary, RolloutRequest

FRAMES_HZ = 20.0
"""Frames per second of simulated time: every fourth of MetaWorld's 80 steps per second."""

MAX_FRAMES = 64
"""Longer episodes have fewer frames per second, to keep files small: every eighth of 500 steps."""


@dataclass(frozen=True)
class VideoSettings:
    """Size and quality of videos.

    Attributes:
        size: Height and width, in pixels, 16 to 1024.
        rendering: full (the simulator's own quality) or fast (no shadows, reflections or smooth edges; without a GPU
            several times as fast).
    """

    size: int = 256
    rendering: Rendering = "fast"

    def __post_init__(self) -> None:
        require_between("size", self.size, 16, 1024)
        require(
            self.rendering in get_args(Rendering),
            f"rendering must be one of {', '.join(get_args(Rendering))}, not {self.rendering!r}",
        )


@dataclass(frozen=True)
class ReplayedRollout:
    """What was done in one rollout.

    Attributes:
        context: Its task and initial state.
        actions: One per environment step, float32 (A,).
        success: Whether the last action solved the task.
    """

    context: Context
    actions: tuple[NDArray[np.float32], ...]
    success: bool


@dataclass(frozen=True)
class Video:
    """Frames, uint8 (height, width, 3), and the seconds from one to the next."""

    frames: tuple[NDArray[np.uint8], ...]
    frame_s: float


def rerun_request(parts: Components, request: RolloutRequest) -> tuple[GroupSummary, list[ReplayedRollout]]:
    """Run a request as rollout actors do, each of its parts as one batch, and keep the actions.

    Args:
        parts: What the actor is built from; the policy must have the weights that acted.
        request: The rollouts.

    Returns:
        The group's summary, and what was done in each of its rollouts.
    """
    worker = RolloutWorker(parts.build_policy, parts.make_environment, parts.max_steps)
    with contextlib.closing(worker):
        summaries, rollouts = zip(*(_rerun_part(worker, part) for part in split(request)), strict=True)
    return join_summaries(summaries), list(itertools.chain(*rollouts))


def _rerun_part(worker: RolloutWorker, part: RolloutRequest) -> tuple[GroupSummary, list[ReplayedRollout]]:
    actions: list[list[NDArray[np.float32]]] = [[] for _ in part.contexts]
    summary, group = worker.roll(part, on_action=lambda row, action: actions[row].append(action.copy()))
    return summary, [
        ReplayedRollout(context, tuple(done), rollout.success)
        for context, done, rollout in zip(part.contexts, actions, group.rollouts, strict=True)
    ]


def render_video(rollout: ReplayedRollout, benchmark: Benchmark, settings: VideoSettings) -> Video:
    """Render a rollout in simulated time, from its first state to its last.

    Args:
        rollout: What was done.
        benchmark: The benchmark of its task; its first camera films.
        settings: Size and quality.

    Raises:
        ReplayError: The simulator does not repeat the rollout, there is no camera, or this machine cannot render.
    """
    spec = benchmark.spec
    interval = max(1, round(spec.control_hz / FRAMES_HZ), math.ceil(len(rollout.actions) / (MAX_FRAMES - 1)))
    if not spec.image_shapes:
        raise ReplayError(f"{spec.name} has no camera, so there is no video of it")
    camera, *_ = spec.image_shapes
    filmed = benchmark.with_cameras(()).with_rendering(image_size=settings.size, rendering=settings.rendering)
    environment = filmed.make(rollout.context.task)
    try:
        environment.reset(np.array(rollout.context.initial_state))
        frames = [environment.render(camera)]
        success = False
        for step, action in enumerate(rollout.actions, start=1):
            success = environment.step(action)
            if step % interval == 0 or step == len(rollout.actions):
                frames.append(environment.render(camera))
    except RuntimeError as error:  # raised by a simulator that cannot render
        raise ReplayError(str(error)) from error
    finally:
        environment.close()
    if success != rollout.success:
        raise ReplayError(f"{rollout.context.task}: the simulator does not repeat the rollout")
    return Video(tuple(frames), interval / spec.control_hz)


def write_gif(path: Path, video: Video) -> None:
    """Write a video as a GIF that loops, with a pause of a second at its end.

    Raises:
        StorageError: The file cannot be written; nothing is left behind.
    """
    images = [Image.fromarray(frame) for frame in video.frames]
    # One palette for all and no dithering: what does not move then costs no bytes.
    palette = _side_by_side(images[0], images[len(images) // 2], images[-1]).quantize(256)
    indexed = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    durations_ms = [*[round(1000 * video.frame_s)] * (len(images) - 1), 1000]
    content = io.BytesIO()
    indexed[0].save(
        content, "GIF", save_all=True, append_images=indexed[1:], duration=durations_ms, loop=0, optimize=False
    )
    with os_errors_as_storage_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content.getvalue())


def _side_by_side(*images: Image.Image) -> Image.Image:
    width, height = images[0].size
    joined = Image.new("RGB", (width * len(images), height))
    for index, image in enumerate(images):
        joined.paste(image, (index * width, 0))
    return joined
