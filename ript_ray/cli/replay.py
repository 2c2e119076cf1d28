"""`ript-ray replay`: one rollout of a run again, as a video."""

from pathlib import Path

from ript_ray.checks import require, require_between
from ript_ray.evaluation.video import VideoSettings, render_video, write_gif
from ript_ray.runs.replay import RecordedRun
from ript_ray.storage.atomic import require_absent


def replay_member(run: Path, *, group: int, member: int, out: Path | None, video_settings: VideoSettings) -> int:
    """Replay one rollout of a run, check it against the log, and film it; returns the exit code.

    Args:
        run: The run's directory.
        group: Index of the group.
        member: Which of its rollouts, from 0.
        out: Where the video goes; among the run's videos unless given. A benchmark without cameras has none.
        video_settings: Size and quality of the video.

    Raises:
        CheckpointError: The directory is not a run's, or something in it is damaged.
        ReplayError: There is no such group, or it does not come out as recorded.
        ConfigError: There is no such member, or the video's name does not end in .gif.
        StorageError: The video exists already, or cannot be written.
    """
    recorded = RecordedRun.open(run)
    record = recorded.record(group)
    require_between("member", member, 0, len(record.num_steps) - 1)
    path = out or recorded.folder.videos / f"group-{group:05d}-member-{member}.gif"
    require(path.suffix == ".gif", f"out must end in .gif, not {path.name}")
    require_absent(path)
    rollout = recorded.repeat(record)[member]
    ending = "success" if rollout.success else "failure"
    print(f"group {group}, member {member}: {ending} after {len(rollout.actions)} steps, as recorded")
    print(f"{record.task}, training context {record.context}; version {record.version} of the policy acted")
    print(f"collected for update {record.update}; the group's verdict: {record.verdict}")
    benchmark = recorded.initial.experiment.benchmark
    if not benchmark.spec.image_shapes:
        print(f"no video: {benchmark.spec.name} has no camera")
        return 0
    video = render_video(rollout, benchmark, video_settings)
    write_gif(path, video)
    print(f"video: {path} ({len(video.frames)} frames, {path.stat().st_size / 1000:.0f} kB)")
    return 0
