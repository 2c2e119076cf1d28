"""Replays and videos of rollouts, with real MetaWorld and the policy of a small run."""

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from ript_envs.contract import EnvironmentSpec
from ript_envs.metaworld.benchmark import MetaWorld
from ript_ray import api
from ript_ray.cli.main import Compare, Evaluate, Replay
from ript_ray.config.experiment import Experiment
from ript_ray.config.rl import PPO, Evaluation, Sampling
from ript_ray.data.contexts import training_contexts
from ript_ray.errors import CheckpointError, ConfigError, ReplayError, StorageError
from ript_ray.evaluation.evaluate import EvaluationResult
from ript_ray.evaluation.video import VideoSettings, render_video, rerun_request
from ript_ray.pipeline import resume_experiment
from ript_ray.rl.context_stream import ContextStream
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.rollout_worker import RolloutWorker
from ript_ray.rl.train import group_request
from ript_ray.runs import checkpoint
from ript_ray.runs.checkpoint import TrainingState
from ript_ray.runs.model_dir import Card, Model, Provenance, save_model
from ript_ray.runs.replay import RecordedRun
from ript_ray.runs.rollout_log import read_groups
from ript_ray.runs.run_dir import RunDir
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.runtime.cluster import Cluster
from ript_ray.tracking.console import View
from ript_ray.tracking.logs import ViewMode
from ript_ray.types import Progress
from tests.conftest import TINY_QUEST

pytestmark = pytest.mark.sim

POLICY = replace(TINY_QUEST, chunk_length=8, num_executed=8)
EXPERIMENT = Experiment(
    "small",
    ("drawer-close-v3", "handle-press-v3"),
    policy=POLICY,
    sampling=Sampling(group_size=4, batch_rollouts=8, contexts_per_task=4),
    ppo=PPO(num_iterations=2, minibatch_rollouts=4, learning_rate=1e-3),
    evaluation=Evaluation(contexts_per_task=3, batch_size=4),
    num_updates=2,
    checkpoint_every=2,
    max_steps=60,
)
HERE = Cluster(in_process=True)


def able_source(experiment: Experiment) -> SavedPolicy:
    """A policy that mostly pushes forwards and down: it sometimes closes a drawer without any training."""
    arrays = SavedPolicy.initial(experiment).arrays
    arrays["autoencoder.action_head.bias"] = np.array([0, 0.5, -0.25, 0], np.float32)
    return SavedPolicy(experiment, arrays)


def begin(root: Path, experiment: Experiment) -> Path:
    """Create a run whose supervised stages are complete."""
    folder = RunDir.create(root, experiment)
    checkpoint.save(folder.checkpoint(0), able_source(experiment), TrainingState(Progress()))
    return folder.path


def finish(path: Path) -> None:
    """Resume a run and end it."""
    resume_experiment(path, HERE, view_of=lambda experiment: View(ViewMode.QUIET, experiment.num_updates))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a finished run of two updates."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/store.db")
        path = begin(home / "runs", EXPERIMENT)
        finish(path)
        yield path


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of the run for tests that damage it."""
    return shutil.copytree(run, tmp_path / "copy")


def test_every_group_of_a_run_is_replayed_exactly(run: Path) -> None:
    recorded = RecordedRun.open(run)
    records = list(recorded.records.values())
    assert {record.version for record in records} == {0, 1}
    assert {record.verdict for record in records} >= {Verdict.ACCEPTED}
    assert (
        sum(len(record.successes) for record in records)
        == json.loads((run / "results.json").read_text())["num_rollouts"]
    )
    for record in records:
        episodes = recorded.repeat(record)  # raises if anything differs
        assert [len(episode.actions) for episode in episodes] == list(record.num_steps)
        assert [int(episode.success) for episode in episodes] == list(record.successes)


def test_a_run_with_noise_on_rollouts_and_split_groups_is_replayed_and_resumed_exactly(
    store: str, tmp_path: Path
) -> None:
    sampling = replace(EXPERIMENT.sampling, rollout_noise_m=0.02, rollouts_per_request=2)
    noisy = replace(EXPERIMENT, sampling=sampling, checkpoint_every=1, keep_weights=True)
    path = begin(tmp_path / "runs", noisy)
    finish(path)
    recorded = RecordedRun.open(path)
    for record in recorded.records.values():
        episodes = recorded.repeat(record)  # raises if anything differs
        assert len({episode.context.initial_state for episode in episodes}) == 4
    last, groups = recorded.folder.checkpoint(2), (path / "groups.jsonl").read_bytes()
    arrays = checkpoint.load(last).arrays
    shutil.rmtree(last)
    (path / "results.json").unlink()
    finish(path)
    assert (path / "groups.jsonl").read_bytes() == groups
    for name, array in checkpoint.load(last).arrays.items():
        np.testing.assert_array_equal(array, arrays[name])


def test_replay_writes_a_moving_video_and_prints_what_it_shows(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = next(record for record in read_groups(run / "groups.jsonl") if record.verdict is Verdict.ACCEPTED)
    member = record.successes.index(1)
    out = tmp_path / "success.gif"
    assert Replay(run, group=record.group, member=member, out=out, size=96).run() == 0
    printed = capsys.readouterr().out
    num_steps = record.num_steps[member]
    assert f"group {record.group}, member {member}: success after {num_steps} steps, as recorded" in printed
    assert f"{record.task}, training context {record.context}; version {record.version}" in printed
    with Image.open(out) as gif:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]
        gif.seek(0)
        assert gif.info["duration"] == 50
    assert frames[0].shape == (96, 96, 3)
    assert len(frames) == 1 + -(-num_steps // 4)
    assert all((a != b).any() for a, b in itertools.pairwise(frames))
    with pytest.raises(StorageError, match=r"success\.gif exists already"):
        Replay(run, group=record.group, member=member, out=out).run()


def test_an_impossible_replay_is_refused_with_the_reason(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match=r"groups\.jsonl has no group 9999; it holds \d+ groups from 0 to"):
        Replay(run, group=9999, member=0).run()
    with pytest.raises(ConfigError, match=r"member must be from 0 to 3, not 4"):
        Replay(run, group=0, member=4).run()
    with pytest.raises(ConfigError, match=r"out must end in \.gif, not video\.mp4"):
        Replay(run, group=0, member=0, out=tmp_path / "video.mp4").run()
    with pytest.raises(ConfigError, match=r"size must be from 16 to 1024, not 8"):
        Replay(run, group=0, member=0, size=8).run()
    with pytest.raises(CheckpointError, match="is not the folder of a run"):
        Replay(tmp_path, group=0, member=0).run()


def test_a_replay_with_another_outcome_is_an_error_that_names_changed_packages(copy: Path) -> None:
    first, *others = (copy / "groups.jsonl").read_text().splitlines()
    line = json.loads(first)
    line["num_steps"][1] -= 1
    (copy / "groups.jsonl").write_text("\n".join([json.dumps(line), *others, ""]))
    with pytest.raises(ReplayError, match=r"group 0 does not come out as recorded: .*every version is that of the run"):
        Replay(copy, group=0, member=0).run()
    versions = json.loads((copy / "versions.json").read_text()) | {"mujoco": "1.2.3"}
    (copy / "versions.json").write_text(json.dumps(versions))
    with pytest.raises(ReplayError, match=r"changed since the run began: mujoco 1\.2\.3 \(now "):
        Replay(copy, group=0, member=0).run()
    assert not (copy / "videos").exists()


def test_without_kept_weights_versions_with_a_checkpoint_can_be_replayed_and_others_are_named(copy: Path) -> None:
    recorded = RecordedRun.open(copy)
    by_version = {record.version: record for record in recorded.records.values()}
    policy = recorded.policy(1)
    shutil.rmtree(copy / "weights")
    assert recorded.repeat(by_version[0])
    with pytest.raises(ReplayError, match=r"version 1 of the policy, .* those of versions 0, 2 are"):
        recorded.repeat(by_version[1])
    checkpoint.save(recorded.folder.checkpoint(1), replace(recorded.initial, arrays=policy.state_arrays()))
    assert recorded.repeat(by_version[1])


def test_videos_of_an_evaluation_show_its_own_rollouts(run: Path, tmp_path: Path) -> None:
    figures, videos = tmp_path / "figures.json", tmp_path / "videos"
    assert Evaluate(run, out=figures, videos=videos, video_size=64, cluster=HERE).run() == 0
    result = EvaluationResult.from_json(json.loads(figures.read_text()))
    assert result.to_json() == json.loads((run / "results.json").read_text())["after"]
    expected = {
        f"{task}-{name}-context-{found.index(success):03d}.gif"
        for task, found in result.outcomes.items()
        for name, success in (("success", True), ("failure", False))
        if success in found
    }
    assert {path.name for path in videos.iterdir()} == expected
    assert all(path.stat().st_size < 500_000 for path in videos.iterdir())
    with pytest.raises(StorageError, match="videos exists already"):
        Evaluate(run, videos=videos, cluster=HERE).run()


def test_a_checkpoint_compared_with_itself_and_with_another(run: Path, tmp_path: Path) -> None:
    assert Compare(run, run, out=tmp_path / "same.json", cluster=HERE).run() == 0
    same = json.loads((tmp_path / "same.json").read_text())
    assert same["A"] == same["B"] == json.loads((run / "results.json").read_text())["after"]
    assert same["difference"]["difference"] == 0
    assert same["difference"]["low"] < 0 < same["difference"]["high"]
    first = run / "checkpoints" / "update-00000"
    assert Compare(first, run, out=tmp_path / "gain.json", cluster=HERE).run() == 0
    results = json.loads((run / "results.json").read_text())
    gain = json.loads((tmp_path / "gain.json").read_text())
    assert (gain["A"], gain["B"], gain["difference"]) == (results["before"], results["after"], results["difference"])
    assert gain["difference"]["num_pairs"] == 6


def test_a_policy_without_experiment_is_compared_on_the_others_contexts(run: Path, tmp_path: Path) -> None:
    source = checkpoint.load(run / "checkpoints" / "update-00000")
    provenance = Provenance("policy.pth", "0" * 64, "sft")
    fitting = EXPERIMENT.benchmark.spec
    save_model(tmp_path / "model", Model(Card("able", EXPERIMENT.policy, fitting, (), provenance), source.arrays))
    assert (
        Compare(run, tmp_path / "model", tasks=EXPERIMENT.tasks[:1], out=tmp_path / "out.json", cluster=HERE).run() == 0
    )
    before, found = (json.loads(path.read_text()) for path in (run / "before.json", tmp_path / "out.json"))
    assert found["B"]["outcomes"] == {task: before["outcomes"][task] for task in EXPERIMENT.tasks[:1]}
    with pytest.raises(CheckpointError, match=r"model is a model folder.*`ript-ray compare RUN .*--start-from"):
        Compare(tmp_path / "model", run, cluster=HERE).run()
    with pytest.raises(CheckpointError, match="model is a model folder"):
        api.evaluate(tmp_path / "model", cluster=HERE)
    foreign = EnvironmentSpec("foreign", action_dim=7, state_dims={"state": 9})
    model = Model(
        Card("foreign", EXPERIMENT.policy, foreign, (), provenance), EXPERIMENT.policy.build(foreign).state_arrays()
    )
    save_model(tmp_path / "foreign", model)
    with pytest.raises(ConfigError, match="it has sensor state of length 9, actions of 7 entries, where there is"):
        Compare(run, tmp_path / "foreign", cluster=HERE).run()


def test_policies_evaluated_under_different_conditions_are_not_compared(run: Path, tmp_path: Path) -> None:
    for name, other in {
        "max_steps 50, not 60": replace(EXPERIMENT, max_steps=50),
        "goal_visible False, not True": replace(EXPERIMENT, benchmark=MetaWorld(goal_visible=False)),
    }.items():
        path = tmp_path / name / "checkpoint"
        checkpoint.save(path, able_source(other))
        with pytest.raises(ConfigError, match=f"cannot be compared: its experiment has {name}"):
            Compare(run, path, cluster=HERE).run()


def test_rendering_videos_does_not_change_the_rollouts_of_a_policy_with_cameras() -> None:
    benchmark = MetaWorld(image_size=32, rendering="full")
    policy = replace(POLICY, cameras=("corner_rgb",), sensors=(), image_size=32, image_channels=8, image_width=16)
    experiment = replace(EXPERIMENT, benchmark=benchmark, policy=policy, max_steps=24)
    source = able_source(experiment)
    request = group_request(ContextStream(training_contexts(experiment), 0), 0, sampling=experiment.sampling, seed=0)
    parts = source.components()
    worker = RolloutWorker(source.build, parts.make_environment, parts.max_steps)
    summary, _ = worker.roll(request)
    again, episodes = rerun_request(parts, request)
    assert again == summary
    for settings in (VideoSettings(32, "fast"), VideoSettings(48, "full")):
        video = render_video(episodes[0], benchmark, settings)
        assert video.frames[0].shape == (settings.size, settings.size, 3)
    after, repeated = rerun_request(parts, request)
    assert after == summary
    for episode, other in zip(episodes, repeated, strict=True):
        np.testing.assert_array_equal(episode.actions, other.actions)
    worker.close()
