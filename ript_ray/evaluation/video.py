"""Videos of episodes that have been: the same actions once more, in a simulator of their own that is drawn.

The actors' simulators, and what a policy sees, stay untouched: an episode is acted out as it was, its actions are
noted, and a second simulator is stepped through them and drawn. Simulators repeat to the bit, so it shows the same.
"""

import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ript_envs.contract import Benchmark, Environment, Observation, Rendering
from ript_ray.checks import require, require_between
from ript_ray.errors import ReplayError
from ript_ray.rl.protocols import Components
from ript_ray.rl.rollout_worker import RolloutWorker
from ript_ray.storage.atomic import atomic_write, os_errors_as_storage_error
from ript_ray.types import Context, GroupSummary, RolloutRequest

FRAMES_HZ = 20.0
"""Frames per second of the robot's time: of MetaWorld's 80 steps per second, every fourth."""

MAX_FRAMES = 64
"""An episode of more has fewer per second, so that its file stays small: of 500 steps, every eighth."""


@dataclass(frozen=True)
class VideoSettings:
    """How videos look.

    Attributes:
        size: Height and width, in pixels, 16 to 1024.
        rendering: full (the model's own) or fast (no shadows, reflections or smooth edges; without a GPU several
            times as fast).
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
        context: Where it started.
        actions: One per environment step, float32 (A,).
        success: Whether the last one solved the task.
    """

    context: Context
    actions: tuple[NDArray[np.float32], ...]
    success: bool


@dataclass(frozen=True)
class Video:
    """Frames uint8 (height, width, 3), and the seconds from one to the next."""

    frames: tuple[NDArray[np.uint8], ...]
    frame_s: float


@dataclass
class _Noting:
    """An environment that notes what is done in it."""

    environment: Environment
    actions: list[NDArray[np.float32]] = field(default_factory=list)
    success: bool = False

    def reset(self, initial_state: NDArray[np.float64]) -> None:
        self.actions.clear()
        self.success = False
        self.environment.reset(initial_state)

    def step(self, action: NDArray[np.float32]) -> bool:
        self.actions.append(action.copy())
        self.success = self.environment.step(action)
        return self.success

    def observe(self) -> Observation:
        return self.environment.observe()

    def render(self, camera: str) -> NDArray[np.uint8]:
        return self.environment.render(camera)

    def close(self) -> None:
        self.environment.close()


def rerun_request(parts: Components, request: RolloutRequest) -> tuple[GroupSummary, list[ReplayedRollout]]:
    """Answer a request as a rollout actor does, all of its rollouts as one batch.

    Args:
        parts: What the actor is made of; the policy must have the weights that acted.
        request: The rollouts.

    Returns:
        The group's summary, and what was done in each of its rollouts.
    """
    noting: list[_Noting] = []

    def make(task: str) -> Environment:
        noting.append(_Noting(parts.make_environment(task)))
        return noting[-1]

    worker = RolloutWorker(parts.build_policy, make, parts.max_steps)
    try:
        summary, _ = worker.roll(request)
        # A fresh pool builds one environment per rollout, in their order.
        episodes = [
            ReplayedRollout(context, tuple(noted.actions), noted.success)
            for context, noted in zip(request.contexts, noting, strict=True)
        ]
        return summary, episodes
    finally:
        worker.close()


def render_video(episode: ReplayedRollout, benchmark: Benchmark, video_settings: VideoSettings) -> Video:
    """Film an episode in the robot's time, from its first state to its last.

    Args:
        episode: What was done.
        benchmark: Where its task comes from; its first camera films.
        video_settings: How it looks.

    Raises:
        ReplayError: The simulator does not repeat the episode, or this machine cannot draw.
    """
    interval = max(1, round(benchmark.spec.control_hz / FRAMES_HZ), math.ceil(len(episode.actions) / (MAX_FRAMES - 1)))
    camera, *_ = benchmark.spec.image_shapes
    sampled = benchmark.with_cameras(()).with_rendering(
        image_size=video_settings.size, rendering=video_settings.rendering
    )
    environment = sampled.make(episode.context.task)
    try:
        environment.reset(np.array(episode.context.initial_state))
        frames = [environment.render(camera)]
        success = False
        for step, action in enumerate(episode.actions, start=1):
            success = environment.step(action)
            if step % interval == 0 or step == len(episode.actions):
                frames.append(environment.render(camera))
    except RuntimeError as error:  # how a simulator without a screen says so
        raise ReplayError(str(error)) from error
    finally:
        environment.close()
    if success != episode.success:
        raise ReplayError(f"{episode.context.task}: the simulator does not repeat what was done in it before")
    return Video(tuple(frames), interval / benchmark.spec.control_hz)


def write_gif(path: Path, video: Video) -> None:
    """Write a video as a GIF that is played over and over, with a second's rest at its end.

    Raises:
        StorageError: The disk does not take it; nothing is left of the attempt.
    """
    pictures = [Image.fromarray(frame) for frame in video.frames]
    # One palette for all, and no dithering: what does not move then costs no bytes.
    palette = _beside_each_other(pictures[0], pictures[len(pictures) // 2], pictures[-1]).quantize(256)
    indexed = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    rests_ms = [*[round(1000 * video.frame_s)] * (len(pictures) - 1), 1000]
    content = io.BytesIO()
    indexed[0].save(content, "GIF", save_all=True, append_images=indexed[1:], duration=rests_ms, loop=0, optimize=False)
    with os_errors_as_storage_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content.getvalue())


def _beside_each_other(*pictures: Image.Image) -> Image.Image:
    width, height = pictures[0].size
    joined = Image.new("RGB", (width * len(pictures), height))
    for place, picture in enumerate(pictures):
        joined.paste(picture, (place * width, 0))
    return joined
