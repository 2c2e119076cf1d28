"""QueST on MetaWorld's ML45, as the paper states it and as the authors' released code runs it: one place for both.

    python experiments/quest_ml45/presets.py

prints every setting in which the two differ. What follows differs as well, and is the same here in both:

    ratio           The paper writes it for a whole rollout, the code takes it per skill token. Here: per token.
    early stop      The paper collects B rollouts. The code aims at 180 groups, and stops at 80 % of them (144), all
                    ranks together. Here: batch-rollouts is what is collected, B = 16 x 180 or 144 x 8.
    minibatches     The paper says 24 rollouts; the code takes 2 on each of 3 GPUs, and averages per GPU, then over
                    GPUs. Here: one mean over all tokens of the minibatch, however many learners share it.
    search          The authors' loop never ends where no mixed group is found. Here: max-uniform-groups ends it.
    first query     The authors' first query of an episode sees a scene drawn anew (stale) on LIBERO. MetaWorld's does
                    not, and ours never does.
    scoring         Tokens are drawn from the top 5 and scored against all 1000, in the code; the paper says nothing.
                    Here: as the code (policy.scored-against).
    contexts        One per demonstration. The code draws MetaWorld's without a seed, so every process has others.
                    Here: from the seed, the same in every process (or from the files: sampling.context-source).
    failures        The authors' demonstrations hold failed episodes too (ript-ray demos --keep-failures); ours do not.
    held out        Two more demonstrations per task, which nothing trains on, for the errors of stages 1 and 2.
    few shots       5 demonstrations per task: --demos.num-per-task 5 --demos.selection spread, 200 epochs, as QueST.

ML45's configuration for RIPT was not released: it is LIBERO's here, and the supervised stages are QueST's for ML45.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from ript_envs.metaworld.benchmark import MetaWorld
from ript_envs.metaworld.tasks import ML45_TRAIN, QUEST_TASK_ORDER
from ript_ray.config.data import Demonstrations
from ript_ray.config.experiment import Experiment
from ript_ray.config.rl import PPO, Evaluation, Sampling
from ript_ray.policies.quest.config import QuestSFT
from ript_ray.policies.quest.presets import published
from ript_ray.policies.supervised import SupervisedStage

BENCHMARK = MetaWorld()

PAPER = Experiment(
    name="quest-ml45",
    tasks=ML45_TRAIN,
    benchmark=BENCHMARK,
    policy=published("metaworld", tuple(map(BENCHMARK.instruction, QUEST_TASK_ORDER))).settings,
    demos=Demonstrations(num_per_task=100, num_held_out=2, action_noise=0.2),
    sft=QuestSFT(
        autoencoder=SupervisedStage(num_epochs=200, batch_size=256),
        prior=SupervisedStage(num_epochs=100, batch_size=128),
    ),
    sampling=Sampling(group_size=16, batch_rollouts=2880, contexts_per_task=50),
    ppo=PPO(num_iterations=20, minibatch_rollouts=24, learning_rate=1e-6),
    evaluation=Evaluation(contexts_per_task=50),
    num_updates=15,
)
"""Source: RIPT-VLA section 5.1; QueST for the supervised stages."""

RELEASED_CODE = replace(
    PAPER,
    sft=QuestSFT(
        autoencoder=SupervisedStage(num_epochs=201, batch_size=256),  # epochs 0 to 200, both included
        prior=SupervisedStage(num_epochs=101, batch_size=128),
        noisy_tokens=True,
    ),
    sampling=Sampling(group_size=8, batch_rollouts=144 * 8, contexts_per_task=50),
    ppo=PPO(
        num_iterations=20,
        minibatch_rollouts=6,
        learning_rate=1e-6,
        final_learning_rate=9e-7,
        schedule_updates=40,
        schedule_every=2,
    ),
    evaluation=Evaluation(contexts_per_task=48),
    num_updates=30,
    checkpoint_every=10,
)
"""Source: the authors' scripts for LIBERO's suites; QueST's for ML45."""

PRESETS = {"paper": PAPER, "released-code": RELEASED_CODE}


def of_stage(stage: Stage) -> dict[str, Experiment]:
    """Both presets of one stage, each a run of its own."""
    return {name: replace(preset, name=f"{preset.name}-{stage}", stages=(stage,)) for name, preset in PRESETS.items()}


def differences() -> Iterator[tuple[str, Any, Any]]:
    """Every setting in which the presets differ: its name, the paper's value, the released code's."""
    paper, code = (_flat(asdict(preset)) for preset in PRESETS.values())
    return ((name, paper[name], code[name]) for name in paper if paper[name] != code[name])


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


if __name__ == "__main__":
    print(f"{'setting':<34}{'paper':>12}{'released code':>16}")
    for setting, paper_value, code_value in differences():
        print(f"{setting:<34}{paper_value!s:>12}{code_value!s:>16}")
