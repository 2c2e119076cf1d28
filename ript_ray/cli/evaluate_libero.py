"""`ript-ray evaluate-libero`: the protocol of the papers, suite by suite."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import tyro

from ript_envs.libero.benchmark import Libero, Suite
from ript_ray.checks import require
from ript_ray.cli.entrypoint import WithBenchmarkFields, WithClusterFile, begin_loading
from ript_ray.errors import ConfigError
from ript_ray.runtime.cluster import Cluster

if TYPE_CHECKING:
    from ript_ray.config.experiment import Experiment
    from ript_ray.evaluation.evaluate import EvaluationResult

FOUR_SUITES: tuple[Suite, ...] = ("libero_goal", "libero_spatial", "libero_object", "libero_10")
"""The suites of the papers' first table, in its order."""

QUEST_HORIZON = 600
"""Environment steps of an episode of any suite. Source: authors' code for QueST."""

OFT_HORIZONS: dict[Suite, int] = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Environment steps of an episode, after settling. Source: authors' code for OpenVLA-OFT."""


@dataclass(frozen=True)
class EvaluateLibero(WithBenchmarkFields, WithClusterFile):
    """Evaluate policies on LIBERO as the papers do: 50 init states of each task, a table per suite and one of all.

    The init states are those that come with the benchmark; no training here uses them. All episodes of a suite stream
    through the same rollout actors. Images, and how an episode begins, are those that a run was trained with, and for a
    model folder QueST's; --benchmark.reset-mode, --benchmark.settle-gripper or --benchmark.perturbation change them.

    Attributes:
        policies: One policy for all suites, or one for each of them, in their order: runs (their newest checkpoints),
            checkpoints or model folders.
        suites: The suites; the four of the papers' first table unless given. libero_10 is the papers' LIBERO-Long.
        horizon: Length of an episode in environment steps: quest (600) or oft (libero_spatial 220, libero_object 280,
            libero_goal 300, libero_10 520, libero_90 400).
        tasks: Only these tasks of the suites; all unless given.
        contexts_per_task: Init states per task, 1 to 50. Source: paper, 50; authors' code for QueST, 48.
        deterministic: Act without chance, where the policy offers it. Source: authors' code, on for OpenVLA-OFT.
        seed: Seed of the actions, from 0 to 2147483647.
        batch_size: Episodes per actor that run as one batch, at least 1.
        out: Write the figures to this JSON file, which must not exist; after each suite.
        cluster: Where it runs.
    """

    policies: Annotated[tuple[Path, ...], tyro.conf.Positional]
    suites: tuple[Suite, ...] = FOUR_SUITES
    horizon: Literal["quest", "oft"] = "quest"
    tasks: tuple[str, ...] = ()
    contexts_per_task: int = 50
    deterministic: bool = False
    seed: int = 0
    batch_size: int = 10
    out: Path | None = None
    cluster: Cluster = field(default_factory=Cluster)

    def run(self) -> int:
        """Evaluate suite by suite; print a table of each, then one of all."""
        num_policies, suites = len(self.policies), self.suites
        require(len(set(suites)) == len(suites), f"suites must differ from each other, not {', '.join(suites)}")
        require("suite" not in self.fields_of_benchmark, "--benchmark.suite: the suites are named by --suites")
        require(
            num_policies in (1, len(suites)),
            f"give one policy, or one for each of the suites {', '.join(suites)}, not {num_policies} policies",
        )
        begin_loading(*self.policies)
        from rich.console import Console

        from ript_ray.api import evaluate
        from ript_ray.config.serialization import SCHEMA
        from ript_ray.evaluation.tables import results_table, suites_table
        from ript_ray.runs.lineage import demonstrations_of, marked
        from ript_ray.storage.atomic import atomic_write, require_absent

        if self.out is not None:
            require_absent(self.out)
        paths = self.policies * (len(suites) if num_policies == 1 else 1)
        experiments = [self.experiment(suite, path) for suite, path in zip(suites, paths, strict=True)]
        console = Console()
        results: dict[str, EvaluationResult] = {}
        figures: dict[str, Any] = {}
        for suite, path, experiment in zip(suites, paths, experiments, strict=True):
            results[suite] = evaluate(path, experiment=experiment, cluster=self.cluster)
            title = f"{suite}, episodes of {experiment.max_steps} steps: {marked(path)}"
            console.print(results_table({"success": results[suite]}, title))
            benchmark = asdict(cast(Any, experiment.benchmark))
            conditions = {
                "policy": str(path),
                "demonstrations": demonstrations_of(path),
                "max_steps": experiment.max_steps,
                "benchmark": benchmark,
            }
            figures[suite] = {**conditions, **results[suite].to_json()}
            if self.out is not None:
                atomic_write(self.out, json.dumps({"schema": SCHEMA, "suites": figures}, indent=2) + "\n")
        console.print(suites_table(results, f"LIBERO, {self.contexts_per_task} init states per task"))
        return 0

    def experiment(self, suite: Suite, path: Path) -> "Experiment":
        """Return what a policy is evaluated in: the benchmark it was trained on; for a model folder, the published one.

        Raises:
            CheckpointError: There is no valid policy at `path`.
            ConfigError: It was trained on another benchmark, or a setting is out of range.
        """
        from ript_ray.config.changes import for_evaluation
        from ript_ray.config.experiment import Experiment
        from ript_ray.config.rl import Evaluation
        from ript_ray.runs import checkpoint
        from ript_ray.runs.model_dir import is_model, load_model
        from ript_ray.types import RIPT

        if is_model(path):
            policy, known = load_model(path).card.policy, Libero()
        else:
            trained = checkpoint.load(checkpoint.find(path)).experiment
            if not isinstance(trained.benchmark, Libero):
                raise ConfigError(f"{path} was trained on {trained.benchmark.spec.name}, not on LIBERO")
            policy, known = trained.policy, trained.benchmark
        benchmark = for_evaluation(replace(known, suite=suite), self.fields_of_benchmark)
        tasks = tuple(task for task in benchmark.tasks if not self.tasks or task in self.tasks)
        require(bool(tasks), f"tasks: {suite} has none of {', '.join(self.tasks)}")
        return Experiment(
            name=f"evaluation-{suite}",
            tasks=tasks,
            stages=(RIPT,),
            benchmark=benchmark,
            policy=policy,
            sft=policy.sft_type(),
            evaluation=Evaluation(
                contexts_per_task=self.contexts_per_task,
                context_source="benchmark",
                deterministic=self.deterministic,
                batch_size=self.batch_size,
            ),
            max_steps=OFT_HORIZONS[suite] if self.horizon == "oft" else QUEST_HORIZON,
            seed=self.seed,
        )
