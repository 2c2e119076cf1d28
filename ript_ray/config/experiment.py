"""The configuration of an experiment: what is learned, independent of the cluster it runs on.

A frozen value that is only checked: derived values are properties. Defaults are the paper's where it gives a number;
"Source: ours" marks the others. The docstrings are printed by `--help`: meaning, unit, range, source.

This is the only module that names all policies and benchmarks.
"""

import importlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from ript_envs.contract import Benchmark, require_task
from ript_envs.libero.benchmark import Libero
from ript_envs.metaworld.benchmark import MetaWorld
from ript_ray.checks import require, require_at_least, require_between
from ript_ray.config.data import Demonstrations
from ript_ray.config.kinds import Kinds
from ript_ray.config.rl import PPO, Evaluation, Sampling
from ript_ray.errors import ConfigError
from ript_ray.policies.base import PolicyConfig
from ript_ray.policies.openvla_oft.config import OpenVLAOFTConfig
from ript_ray.policies.quest.config import QuestConfig, QuestSFT
from ript_ray.policies.supervised import NoSFT, SFTConfig, SupervisedTask
from ript_ray.types import RIPT

Kept = int | Literal["all"]
"""How many of the newest files of a kind are kept."""

BENCHMARKS: Kinds[Benchmark] = Kinds("benchmark", Benchmark, MetaWorld, Libero, entry_points="ript_ray.benchmarks")
POLICIES: Kinds[PolicyConfig] = Kinds(
    "policy", PolicyConfig, QuestConfig, OpenVLAOFTConfig, entry_points="ript_ray.policies"
)


class _SFTKinds(Kinds[SFTConfig]):
    """The supervised settings of the known policies, under the policies' kinds."""

    def names(self) -> list[str]:
        """Return every known kind."""
        return sorted({NoSFT.kind, *POLICIES.names()})

    def find(self, kind: object) -> type[SFTConfig]:
        """Return the supervised settings of the policy of that kind."""
        return super().find(kind) if kind == NoSFT.kind else POLICIES.find(kind).sft_type


SFT_KINDS = _SFTKinds("sft", SFTConfig, NoSFT, entry_points="ript_ray.policies")


@dataclass(frozen=True)
class Experiment:
    """One experiment: what is learned, independent of the cluster it runs on.

    Attributes:
        name: Name of the experiment; its runs are in runs/<name>/.
        tasks: Tasks of the benchmark, at least one; one policy is trained on all of them.
        stages: The stages to train, consecutive and in order: those of the policy, then ript.
        start_from: The policy that the first stage starts from, unless that is the policy's very first stage: a model
            folder, a checkpoint, or a run (its newest checkpoint).
        benchmark: The benchmark of the tasks.
        policy: Sizes, inputs and sampling of the policy.
        demos: Demonstrations for the supervised stages.
        sft: The supervised stages.
        sampling: Contexts, groups and dynamic sampling.
        ppo: Policy optimization.
        evaluation: Evaluation of success rates.
        num_updates: M, policy updates, at least 1. Source: authors' code, 15 to 30.
        checkpoint_every: Updates between two checkpoints, at least 1; the last one is always saved. Source: authors'
            code, 5 to 10.
        keep_checkpoints: Checkpoints of post-training to keep: the newest ones, at least 1, or all. Beside them, those
            of update 0, of the end of each supervised stage, and the best one (checkpoints/best) are always kept. One
            takes 5 MB for the quickstart's policy, 190 MB for the published one. Changes no result. Source: ours.
        keep_weights: Keep the trainable weights of the newest updates (keep-versions) in the run's folder, so that
            their rollouts can be replayed; otherwise only those of checkpointed versions can be. Source: ours.
        keep_versions: Updates whose weights are kept: the newest ones, at least 1, or all, so that every rollout can be
            replayed. Costs 4 bytes per trainable parameter and update: 1.5 MB for the quickstart's policy, 46 MB for
            the published one. Changes no result. Source: ours.
        max_steps: Episode length limit in environment steps, 1 to the benchmark's own limit. Source: MetaWorld, 500.
        learner_threads: Torch threads of the learner, at least 1. Part of the experiment because it determines the
            order of floating-point sums. Source: ours.
        num_learners: Data-parallel learner processes that share every minibatch, at least 1. Part of the experiment
            for the same reason. Source: ours.
        seed: Seed of every random stream, from 0 to 2147483647.
    """

    name: str
    tasks: tuple[str, ...]
    stages: tuple[str, ...] = (*QuestSFT.stages, RIPT)
    start_from: Path | None = None
    benchmark: Annotated[Benchmark, BENCHMARKS] = field(default_factory=MetaWorld)
    policy: Annotated[PolicyConfig, POLICIES] = field(default_factory=QuestConfig)
    demos: Demonstrations = field(default_factory=Demonstrations)
    sft: Annotated[SFTConfig, SFT_KINDS] = field(default_factory=QuestSFT)
    sampling: Sampling = field(default_factory=Sampling)
    ppo: PPO = field(default_factory=PPO)
    evaluation: Evaluation = field(default_factory=Evaluation)
    num_updates: int = 15
    checkpoint_every: int = 5
    keep_checkpoints: Kept = field(default=2, metadata={"before": "all"})
    keep_weights: bool = True
    keep_versions: Kept = field(default=20, metadata={"before": "all"})
    max_steps: int = 500
    learner_threads: int = 1
    num_learners: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            bool(self.name) and not set(self.name) & set("/\\ \t\n") and self.name.strip(".") != "",
            f"name must be a word that can name a folder, not {self.name!r}",
        )
        require(bool(self.tasks), "tasks must name at least one task")
        require(len(set(self.tasks)) == len(self.tasks), f"tasks must differ from each other, not {self.tasks}")
        require(
            isinstance(self.sft, self.policy.sft_type),
            f"sft must be the {self.policy.sft_type.__name__} of policy {self.policy.kind}, not {self.sft}",
        )
        self._check_parameter_groups()
        self._check_stages()
        require(
            self.sampling.context_source != "demos" or self.sampling.contexts_per_task <= self.demos.num_per_task,
            f"sampling.contexts-per-task must be at most demos.num-per-task {self.demos.num_per_task}, because the "
            f"contexts are those of the demonstrations, not {self.sampling.contexts_per_task}",
        )
        for task in self.tasks:
            try:
                require_task(task, self.benchmark.tasks, self.benchmark.spec.name)
            except ValueError as error:
                raise ConfigError(f"tasks: {error}") from None
        self.policy.require_fit(self.benchmark.spec)
        self.policy.require_trained_on(self.benchmark.label)
        if self.evaluation.deterministic:
            self.policy.require_deterministic()
        require_between("max-steps", self.max_steps, 1, self.benchmark.spec.max_steps)
        for field_name in ("num_updates", "checkpoint_every", "learner_threads", "num_learners"):
            require_at_least(field_name.replace("_", "-"), getattr(self, field_name), 1)
        for field_name in ("keep_checkpoints", "keep_versions"):
            if (kept := getattr(self, field_name)) != "all":
                require_at_least(field_name.replace("_", "-"), kept, 1)
        require_between("seed", self.seed, 0, 2**31 - 1)

    @property
    def instructions(self) -> tuple[str, ...]:
        """The instructions of the tasks."""
        return tuple(map(self.benchmark.instruction, self.tasks))

    @property
    def takes_demonstrated_contexts(self) -> bool:
        """Whether post-training starts from the initial states of demonstrations."""
        return RIPT in self.stages and self.sampling.context_source == "demos"

    @property
    def evaluation_seed(self) -> int:
        """Seed of the held-out contexts and of the rollouts from them."""
        return self.seed if self.evaluation.seed is None else self.evaluation.seed

    @property
    def all_stages(self) -> tuple[str, ...]:
        """All stages of the policy, in order."""
        return (*self.sft.stages, RIPT)

    @property
    def supervised_tasks(self) -> tuple[SupervisedTask, ...]:
        """The supervised stages to train, in order."""
        return tuple(task for task in self.sft.tasks() if task.name in self.stages)

    def _check_parameter_groups(self) -> None:
        known = self.policy.parameter_groups
        for field_name in ("learning_rates", "max_grad_norms"):
            unknown = [name for name in getattr(self.ppo, field_name) if name not in known]
            require(
                not unknown,
                f"ppo.{field_name.replace('_', '-')} names {', '.join(unknown)}; the parameter groups of policy "
                f"{self.policy.kind}: {', '.join(known) or 'none'}",
            )

    def _check_stages(self) -> None:
        order = self.all_stages
        runs = [order[first:last] for first in range(len(order)) for last in range(first + 1, len(order) + 1)]
        require(
            self.stages in runs,
            f"stages must be one or more of {', '.join(order)}, in this order and without a gap, "
            f"not {', '.join(self.stages) or 'none'}",
        )
        require(
            self.start_from is None or self.stages[0] != order[0] or len(order) == 1,
            f"start-from: a run that begins with {order[0]} starts from random weights, not from {self.start_from}",
        )


def register(*classes: type) -> None:
    """Register policies (`PolicyConfig`) and benchmarks (`Benchmark`) of your own: files may then name their kinds.

    Raises:
        ConfigError: A class is neither, has no kind, or its kind is taken.
    """
    for cls in classes:
        if BENCHMARKS.accepts(cls):
            BENCHMARKS.add(cls)
        else:
            POLICIES.add(cls)


def load_plugin(reference: str) -> Any:
    """Import the class or function that a command line names as MODULE:NAME.

    Raises:
        ConfigError: The reference has another form, or cannot be imported.
    """
    module, _, name = reference.partition(":")
    require(bool(module and name), f"a plugin must be given as MODULE:NAME, not {reference!r}")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"plugin {reference} cannot be imported: {error}") from error


def plugin_option(experiment: Experiment) -> str:
    """Return what a command needs at its end that reads the experiment in another process: ` --plugin MODULE:NAME`.

    It is empty where policy and benchmark are known everywhere. A class of the program itself is named by the module
    that the program is, or by its file, as `--plugin` finds it from the current directory.
    """
    classes: list[type] = []
    if BENCHMARKS.needs_plugin(type(experiment.benchmark)):
        classes.append(type(experiment.benchmark))
    if POLICIES.needs_plugin(type(experiment.policy)):
        classes.append(type(experiment.policy))
    names = [f"{_module_of(cls)}:{cls.__qualname__}" for cls in classes]
    return f" --plugin {' '.join(names)}" if names else ""


def _module_of(cls: type) -> str:
    program = sys.modules["__main__"]
    if cls.__module__ != "__main__" or program.__file__ is None:
        return cls.__module__
    if program.__spec__ is not None:
        return program.__spec__.name
    file = Path(program.__file__).resolve().with_suffix("")
    return ".".join(file.relative_to(Path.cwd()).parts) if file.is_relative_to(Path.cwd()) else file.name
