"""What is learned, as frozen values. Checks only: nothing is mutated, derived sizes are properties.

Defaults are the paper's wherever it gives a figure; "Source: ours" marks the rest. Docstrings are what
`--help` prints: meaning, unit, range, source.
"""

from dataclasses import dataclass, field
from pathlib import Path

from ript_envs.contract import require_task
from ript_envs.metaworld import MetaWorld
from ript_ray.checks import require, require_at_least, require_between
from ript_ray.config.rl import PPO, Evaluation, Sampling
from ript_ray.config.sft import SFT, Demonstrations
from ript_ray.errors import ConfigError
from ript_ray.policies.quest.config import QuestConfig
from ript_ray.types import Stage


@dataclass(frozen=True)
class Experiment:
    """One experiment: what is learned, and nothing of where it runs.

    Attributes:
        name: Name of the experiment; its runs lie under runs/<name>/.
        tasks: Tasks of the benchmark that one policy serves, at least one.
        stages: The stages that the experiment trains, in their order and without a gap.
        start_from: The policy that the first stage starts from, where that is not the autoencoder: a model folder, a
            checkpoint, or a run's folder (its newest checkpoint).
        benchmark: Where the tasks come from.
        policy: The policy's sizes and sampling.
        demos: Demonstrations for the supervised stages.
        sft: The supervised stages.
        sampling: Contexts, groups and dynamic sampling.
        ppo: Policy optimisation.
        evaluation: Measuring success.
        num_updates: M, updates of the policy, at least 1. Source: authors' code, 15 to 30.
        checkpoint_every: Updates from one checkpoint to the next, at least 1; the last weights are always
            saved. Source: authors' code, 5 to 10.
        keep_weights: Keep the trainable weights of every update in the run's folder, so that any rollout can be
            replayed; without them, those of versions that have a checkpoint. Costs 4 bytes per trainable parameter
            and update: 1.5 MB for the quickstart's policy, 46 MB for the published one. Source: ours.
        max_steps: Longest episode in environment steps, 1 to the benchmark's own limit. Source: MetaWorld, 500.
        learner_threads: Torch threads of the learner, at least 1; decides the order of sums, so it belongs
            to the experiment. Source: ours.
        num_learners: Learner processes that share every minibatch (data parallel), at least 1; for the same
            reason part of the experiment. Source: ours.
        seed: Seed of every random stream, from 0 to 2147483647.
    """

    name: str
    tasks: tuple[str, ...]
    stages: tuple[Stage, ...] = tuple(Stage)
    start_from: Path | None = None
    benchmark: MetaWorld = field(default_factory=MetaWorld)
    policy: QuestConfig = field(default_factory=QuestConfig)
    demos: Demonstrations = field(default_factory=Demonstrations)
    sft: SFT = field(default_factory=SFT)
    sampling: Sampling = field(default_factory=Sampling)
    ppo: PPO = field(default_factory=PPO)
    evaluation: Evaluation = field(default_factory=Evaluation)
    num_updates: int = 15
    checkpoint_every: int = 5
    keep_weights: bool = True
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
        self._check_stages()
        for task in self.tasks:
            try:
                require_task(task, self.benchmark.tasks, "MetaWorld")
            except ValueError as error:
                raise ConfigError(f"tasks: {error}") from None
        for sensor in self.policy.sensors:
            require(
                sensor in self.benchmark.state_dims,
                f"policy.sensors: MetaWorld has no sensor {sensor!r}; it has {', '.join(self.benchmark.state_dims)}",
            )
        for camera in self.policy.cameras:
            require(
                camera in self.benchmark.image_shapes,
                f"policy.cameras: MetaWorld has no camera {camera!r}; it has {', '.join(self.benchmark.image_shapes)}",
            )
        require_between("max-steps", self.max_steps, 1, self.benchmark.max_steps)
        for field_name in ("num_updates", "checkpoint_every", "learner_threads", "num_learners"):
            require_at_least(field_name.replace("_", "-"), getattr(self, field_name), 1)
        require_between("seed", self.seed, 0, 2**31 - 1)

    def _check_stages(self) -> None:
        order = tuple(Stage)
        runs = [order[first:last] for first in range(len(order)) for last in range(first + 1, len(order) + 1)]
        require(
            self.stages in runs,
            f"stages must be one or more of {', '.join(order)}, in this order and without a gap, "
            f"not {', '.join(self.stages) or 'none'}",
        )
        require(
            self.start_from is None or self.stages[0] is not Stage.AUTOENCODER,
            f"start-from: a run that begins with the autoencoder starts from nothing, not from {self.start_from}",
        )
