"""The command `ript-ray`: everything that is done with runs, policies, data and the installation."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ript_ray import __version__
from ript_ray.cli.conformance import CheckBenchmark, CheckPolicy
from ript_ray.cli.doctor import Doctor
from ript_ray.cli.embed_text import EmbedText
from ript_ray.cli.entrypoint import (
    WithBenchmarkFields,
    WithClusterFile,
    WithPlugins,
    at_cluster_file,
    begin_loading,
    join_benchmark_fields,
    register_plugins,
    run_command,
)
from ript_ray.cli.evaluate_libero import EvaluateLibero
from ript_ray.cli.plan import Plan, join_plan_options
from ript_ray.cli.runs import Runs
from ript_ray.cli.summarize import Summarize
from ript_ray.runtime.cluster import Cluster
from ript_ray.seeding import Split
from ript_ray.tracking.logs import console_logging

VideoRendering = Annotated[
    Literal["full", "fast"],
    tyro.conf.arg(
        help="Image quality: full (the simulator's own) or fast (no shadows, reflections or smooth edges; several "
        "times as fast without a GPU)."
    ),
]


SplitName = Literal["validation", "test"]


@dataclass(frozen=True)
class Evaluate(WithBenchmarkFields, WithClusterFile):
    """Evaluate a checkpoint on held-out contexts, with 95 % intervals.

    The contexts and the seed of every rollout are those of the checkpoint's experiment, so a run's own figures are
    reproduced.

    Attributes:
        checkpoint: A checkpoint, or a run's folder (its newest checkpoint).
        contexts_per_task: Held-out contexts per task, at least 1; as in the experiment unless given.
        tasks: Tasks to evaluate on; those of the experiment unless given.
        split: Which held-out contexts: test (those that runs report) or validation (to tune and to choose by).
        deterministic: Act without chance where the policy offers it; as in the experiment unless given.
        out: Write the figures to this JSON file, which must not exist.
        videos: Write a GIF of the first success and of the first failure of each task to this folder, which must not
            exist. They are replayed from their seeds, exactly.
        video_size: Height and width of the videos, in pixels, 16 to 1024.
        cluster: Where it runs.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    contexts_per_task: int | None = None
    tasks: tuple[str, ...] | None = None
    split: SplitName = "test"
    deterministic: bool | None = None
    out: Path | None = None
    videos: Path | None = None
    video_size: int = 256
    video_rendering: VideoRendering = "fast"
    cluster: Cluster = field(default_factory=Cluster)

    def run(self) -> int:
        """Evaluate and print; write the files that were asked for."""
        begin_loading(self.checkpoint)
        # Imported here: `doctor` must answer where one of these packages is missing or broken.
        from ript_ray.api import EvaluationOverrides
        from ript_ray.cli.evaluate import evaluate_checkpoint
        from ript_ray.evaluation.video import VideoSettings

        overrides = EvaluationOverrides(
            self.contexts_per_task, self.tasks, Split(self.split), self.deterministic, self.fields_of_benchmark
        )
        return evaluate_checkpoint(
            self.checkpoint,
            overrides,
            out=self.out,
            videos=self.videos,
            video_settings=VideoSettings(self.video_size, self.video_rendering),
            cluster=self.cluster,
        )


@dataclass(frozen=True)
class Compare(WithBenchmarkFields, WithClusterFile):
    """Evaluate two policies on the same held-out contexts and seeds, and print their paired difference.

    Contexts, seeds and horizon are those of the first one's experiment. The difference is the second's success rate
    minus the first's, with Newcombe's 95 % interval for paired proportions and McNemar's exact test.

    Attributes:
        first: A checkpoint, or a run's folder (its newest checkpoint).
        second: A checkpoint, a run's folder, or a model folder.
        contexts_per_task: Held-out contexts per task, at least 1; as in the first one's experiment unless given.
        tasks: Tasks to evaluate on; those of the first one's experiment unless given.
        split: Which held-out contexts: test (those that runs report) or validation (to tune and to choose by).
        deterministic: Act without chance where both policies offer it; as in the first one's experiment unless given.
        out: Write the figures to this JSON file, which must not exist.
        cluster: Where it runs.
    """

    first: Annotated[Path, tyro.conf.Positional]
    second: Annotated[Path, tyro.conf.Positional]
    contexts_per_task: int | None = None
    tasks: tuple[str, ...] | None = None
    split: SplitName = "test"
    deterministic: bool | None = None
    out: Path | None = None
    cluster: Cluster = field(default_factory=Cluster)

    def run(self) -> int:
        """Evaluate both and print; write the file that was asked for."""
        begin_loading(self.first, self.second)
        from ript_ray.api import EvaluationOverrides
        from ript_ray.cli.evaluate import compare_checkpoints

        overrides = EvaluationOverrides(
            self.contexts_per_task, self.tasks, Split(self.split), self.deterministic, self.fields_of_benchmark
        )
        return compare_checkpoints(self.first, self.second, overrides, out=self.out, cluster=self.cluster)


@dataclass(frozen=True)
class Replay(WithPlugins):
    """Repeat one rollout of a run exactly, check it against the log, and write a video of it.

    Context, seeds and the version of the policy that acted are those of the run; all rollouts of the group are
    repeated, because they acted as one batch. groups.jsonl in the run's folder lists the groups.

    Attributes:
        run_folder: The run's folder.
        group: Index of the group.
        member: Which rollout of the group, from 0.
        out: The GIF to write, which must not exist; videos/group-<id>-member-<k>.gif in the run's folder unless
            given.
        size: Height and width of the video, in pixels, 16 to 1024.
    """

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="run")]
    group: int
    member: int
    out: Path | None = None
    size: int = 256
    rendering: VideoRendering = "fast"

    def run(self) -> int:
        """Replay, and print what it was."""
        begin_loading(self.run_folder)
        from ript_ray.cli.replay import replay_member
        from ript_ray.evaluation.video import VideoSettings
        from ript_ray.runs.killed import closing_killed_runs_beside

        video_settings = VideoSettings(self.size, self.rendering)
        with closing_killed_runs_beside(self.run_folder):
            return replay_member(
                self.run_folder, group=self.group, member=self.member, out=self.out, video_settings=video_settings
            )


@dataclass(frozen=True)
class Resume(WithPlugins, WithClusterFile):
    """Resume an interrupted run from its newest checkpoint, exactly; or extend one, finished or not (--num-updates).

    Attributes:
        run_folder: The run's folder.
        num_updates: Go on to this number of updates, more than the run has. Moments, the position in the contexts and
            the metrics are kept, so the weights are those of a run that had as many updates from the start. Earlier
            results are kept as results-<updates>.json.
        strict: Refuse where the code, a package or the processor is not that of the run's beginning; otherwise there
            is a warning, and resumed.jsonl in the run's folder and the tags in MLflow tell.
        view: Progress on the console: auto (a live table in a terminal, lines elsewhere), lines (one per update, and
            every 10 s in supervised stages), quiet (only warnings, errors and the results).
        cluster: Where it runs; it may be another one than before.
    """

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="run")]
    num_updates: int | None = None
    strict: bool = False
    view: Literal["auto", "lines", "quiet"] = "auto"
    cluster: Cluster = field(default_factory=Cluster)

    def run(self) -> int:
        """Resume, and print the results."""
        from ript_ray.cli.launch import resume
        from ript_ray.tracking.logs import ViewMode

        view = ViewMode(self.view)
        return resume(self.run_folder, self.cluster, view, num_updates=self.num_updates, strict=self.strict)


@dataclass(frozen=True)
class SyncTracking(WithPlugins):
    """Upload the metrics and results of a run that were not delivered to the tracking store during the run.

    The store is the one that MLFLOW_TRACKING_URI names, else the one that the run was started with (docs/mlflow.md).
    What it has already is not stored twice.

    Attributes:
        run_folder: The run's folder.
    """

    run_folder: Annotated[Path, tyro.conf.Positional]

    def run(self) -> int:
        """Upload, and print the number of points."""
        begin_loading(self.run_folder)
        from ript_ray.cli.sync_tracking import sync_tracking
        from ript_ray.runs.run_dir import RunDir

        print(f"{sync_tracking(RunDir(self.run_folder))} points are in the tracking store")
        return 0


@dataclass(frozen=True)
class Import:
    """Convert a checkpoint file of QueST's or RIPT-VLA's authors (.pth) to a model folder.

    The file is read without executing anything in it; every entry must have the expected name, shape and type. Of files
    that QueST's training saved on the way, all but the model is ignored. The folder holds the weights as safetensors, a
    card (README.md, model.json) and the hashes of all files.

    Attributes:
        checkpoint: The file.
        out: The folder to write, which must not exist.
        variant: Which of the published policies it is.
        tasks: Tasks that it was trained on, for the card.
        instructions: For variant metaworld: the instruction of each learned task vector, in order; unless given, the
            50 tasks in the order in which QueST numbers them.
        text_features: For variant libero: a safetensors file with the text features of each instruction, under its
            words (512 numbers, float32, from CLIP ViT-B/32), as `ript-ray embed-text` writes it. Unless given, an
            experiment that starts from the policy adds those of its own instructions.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.Positional]
    variant: Literal["libero", "metaworld"] = "libero"
    tasks: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()
    text_features: Path | None = None

    def run(self) -> int:
        """Write the folder, and print what it holds."""
        begin_loading(self.checkpoint)
        from ript_ray.cli.convert import ImportMetadata, import_checkpoint

        metadata = ImportMetadata(self.tasks, self.instructions, self.text_features)
        model = import_checkpoint(self.checkpoint, self.out, variant=self.variant, metadata=metadata)
        print(f"{self.out}: {model.card.name}, upstream format {model.card.provenance.layout}")
        return 0


@dataclass(frozen=True)
class Export(WithPlugins):
    """Write a policy in the format that the authors' code reads.

    QueST as a .pth file with the same tensors, byte for byte; what was trained of OpenVLA-OFT as a folder with the
    adapter, which peft opens as well, and the heads.

    Attributes:
        model: A model folder, a checkpoint, or a run's folder (its newest checkpoint).
        out: The file or folder to write, which must not exist.
        layout: Which of QueST's upstream formats: sft (plain names) or ript (every name begins with "module."). Unless
            given, the one that the policy was imported from; ript for a run's.
    """

    model: Annotated[Path, tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.Positional]
    layout: Literal["sft", "ript"] | None = None

    def run(self) -> int:
        """Write the file, and print its format."""
        begin_loading(self.model)
        from ript_ray.cli.convert import export_checkpoint
        from ript_ray.runs.killed import closing_killed_runs_beside

        with closing_killed_runs_beside(self.model):
            layout = export_checkpoint(self.model, self.out, layout=self.layout)
        print(f"{self.out}: upstream format {layout}")
        return 0


@dataclass(frozen=True)
class Demos(WithBenchmarkFields, WithClusterFile):
    """Record demonstrations of scripted experts, one HDF5 file per task; files that are complete are skipped.

    The files are where the benchmark's other loaders look for them (for MetaWorld, metaworld/ML45_PRISE/train and test
    below `out`; for LIBERO, libero/<suite>), and are the same with any number of processes. They say that a script made
    them, and so do all runs that learn from them: they are not the demonstrations that published policies learned from.

    Attributes:
        benchmark: Kind of the benchmark: metaworld, libero, or one of your own.
        task: Tasks by name, or the benchmark's names for sets of tasks: ml45-train and ml45-test are the 45 and the 5
            tasks of the papers, libero_object and so on all tasks of a suite, scripted those of a suite that the
            scripted expert of LIBERO can do.
        episodes: Demonstrations per task, at least 1. Source: paper, 50; QueST's data has 100.
        action_noise: Standard deviation of Gaussian noise on the expert's actions, in [0, 1] of half the action
            range. Source: QueST, 0.2.
        keep_failures: Keep episodes that fail, as QueST's data does; otherwise they are dropped and recorded again.
        max_steps: When an attempt has failed, in environment steps; the benchmark's own limit unless given.
        max_attempts: Give up on a task after this many failures in a row, at least 1.
        images: Record what the cameras see at each step, beside the states; size and quality are fields of the
            benchmark, such as --benchmark.rendering fast.
        seed: The only source of randomness, from 0 to 2147483647.
        out: Folder that the files go to.
        cluster: Where it runs; an episode may take `group-timeout-s`.
    """

    benchmark: Annotated[str, tyro.conf.Positional]
    task: tuple[str, ...]
    episodes: int = 50
    action_noise: float = 0.2
    keep_failures: bool = False
    max_steps: int | None = None
    max_attempts: int = 20
    images: bool = True
    seed: int = 0
    out: Path = Path("data")
    cluster: Cluster = field(default_factory=Cluster)

    def run(self) -> int:
        """Record; each file is logged, and success of the expert on each task is printed."""
        begin_loading()
        from ript_ray.cli.demos import print_success
        from ript_ray.config.changes import with_fields
        from ript_ray.config.experiment import BENCHMARKS
        from ript_ray.data.recording import Plan, files_of, record_files

        benchmark = with_fields(BENCHMARKS.find(self.benchmark)(), self.fields_of_benchmark)
        benchmark = benchmark.with_cameras(tuple(benchmark.spec.image_shapes) if self.images else ())
        plan = Plan(
            benchmark,
            num_episodes=self.episodes,
            action_noise=self.action_noise,
            keep_failures=self.keep_failures,
            max_steps=self.max_steps or benchmark.spec.max_steps,
            max_attempts=self.max_attempts,
            seed=self.seed,
        )
        files = files_of(benchmark, self.out, self.task)
        record_files(plan, files, self.cluster)
        print_success(files)
        return 0


def parse(arguments: Sequence[str]) -> Any:
    """Return the command that a command line of `ript-ray` names, with its options; exits if there is none."""
    commands: dict[str, type[Any]] = {
        "plan": Plan,
        "runs": Runs,
        "evaluate": Evaluate,
        "evaluate-libero": EvaluateLibero,
        "compare": Compare,
        "summarize": Summarize,
        "replay": Replay,
        "resume": Resume,
        "sync-tracking": SyncTracking,
        "import": Import,
        "export": Export,
        "embed-text": EmbedText,
        "demos": Demos,
        "check-policy": CheckPolicy,
        "check-benchmark": CheckBenchmark,
        "doctor": Doctor,
    }
    joined = join_benchmark_fields(join_plan_options(arguments))
    chosen = {
        name: at_cluster_file(each, joined) if issubclass(each, WithClusterFile) else each
        for name, each in commands.items()
    }
    return tyro.extras.subcommand_cli_from_dict(chosen, prog="ript-ray", args=joined)


def main() -> None:
    """Entry point of `ript-ray`."""

    def execute() -> int:
        if sys.argv[1:] == ["--version"]:
            print(f"ript-ray {__version__}")
            return 0
        command = parse(sys.argv[1:])
        with console_logging():
            register_plugins(getattr(command, "plugin", ()))
            return int(command.run())

    run_command(execute)
