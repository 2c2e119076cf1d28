"""QueST on MetaWorld's ML45: autoencoder, prior and RIPT, as in the paper or as in the authors' released code.

Question: how well do 8 tokens out of 1000 represent 32 actions of 45 tasks (autoencoder), how often does the
    imitation-learned policy succeed on unseen contexts (prior), and how much does post-training with nothing but
    success or failure add (ript)?
Source: QueST (Mete et al. 2024), sections 4.1 and 4.2, for the supervised stages; RIPT-VLA (Tan et al. 2025),
    section 5.1 and table 2, for RIPT. The configuration of RIPT on ML45 was not released: this is LIBERO's.
Expected: autoencoder: a mean action error that levels off, on held-out demonstrations too. prior: 91.0 % success over
    ML45 (RIPT-VLA, table 2); others reproduced 84.3 %. ript: 92.2 % with all demonstrations (+1.2 points), +12.4 points
    with five per task.
Hardware: supervised stages: one GPU with 24 GB; on a CPU, choose few tasks and a smaller policy. ript: one core per
    rollout actor, which renders images, and one learner process.
Time: not measured at full size.

Each preset is a run: `paper` and `released-code` train all three stages, `paper-autoencoder`, `paper-prior`,
`paper-ript` (and likewise for `released-code`) one stage each, in runs/quest-ml45-<stage>/. The supervised stages read
102 recorded demonstrations per task, two of them held out; RIPT reads none and also starts from an imported checkpoint:

    ript-ray demos metaworld --task ml45-train --episodes 102 --out data
    python -m experiments.quest_ml45 paper-autoencoder --demos.folder data
    python -m experiments.quest_ml45 paper-prior --demos.folder data --start-from runs/quest-ml45-autoencoder/<run>
    python -m experiments.quest_ml45 paper-ript --start-from runs/quest-ml45-prior/<run>
    python -m experiments.quest_ml45 released-code-ript --start-from models/quest-ml45
    python -m experiments.quest_ml45 differences

The last command prints every setting in which the presets differ. Resume an interrupted run with `ript-ray resume RUN`.
In the following, both presets are the same and differ from the paper, the code or both:

    ratio           Paper: per rollout. Code: per skill token. Here: per token.
    early stop      Paper: collects B rollouts. Code: aims at 180 groups over all ranks and stops at 80 % (144).
                    Here: collects batch-rollouts, which is B = 16 x 180 or 144 x 8.
    minibatches     Paper: 24 rollouts. Code: 2 on each of 3 GPUs, averaged per GPU, then over GPUs. Here: one mean over
                    all tokens of the minibatch, whatever the number of learners.
    search          Code: never ends if no mixed group is found. Here: limited by max-uniform-groups.
    first query     Code: on LIBERO, not on MetaWorld, the first query of an episode sees a stale observation, from a
                    random reset instead of the context. Here: never.
    scoring         Paper: not stated. Code: tokens are drawn from the top 5 and scored against all 1000. Here: as in
                    the code (policy.scored-against).
    contexts        One per demonstration. Code: MetaWorld's are drawn without a seed, differently in every process.
                    Here: from the seed, the same in every process, or from files (sampling.context-source).
    failures        Code: demonstrations include failed episodes (ript-ray demos --keep-failures). Here: none.
    threads         Here: the learner uses all cores of the machine (learner-threads): results differ in their last bits
                    between machines, as they do anyway.
    held out        Here: two more demonstrations per task, not trained on, for the errors of the supervised stages.
    few-shot        5 demonstrations per task: --demos.num-per-task 5 --demos.selection spread, 200 epochs, as QueST.
"""

import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from ript_envs.metaworld.benchmark import MetaWorld
from ript_envs.metaworld.tasks import ML45_TRAIN, QUEST_TASK_ORDER
from ript_ray.cli.launch import launch_preset
from ript_ray.config.data import Demonstrations
from ript_ray.config.experiment import Experiment
from ript_ray.config.rl import PPO, Evaluation, Sampling
from ript_ray.config.serialization import flatten
from ript_ray.policies.quest.config import QuestSFT
from ript_ray.policies.quest.presets import published
from ript_ray.policies.supervised import SupervisedStage
from ript_ray.runtime.host import num_cpus

BENCHMARK = MetaWorld()

PAPER = Experiment(
    name="quest-ml45",
    tasks=ML45_TRAIN,
    benchmark=BENCHMARK,
    policy=published("metaworld", tuple(map(BENCHMARK.instruction, QUEST_TASK_ORDER))),
    demos=Demonstrations(num_per_task=100, num_held_out=2, action_noise=0.2),
    sft=QuestSFT(
        autoencoder=SupervisedStage(num_epochs=200, batch_size=256),
        prior=SupervisedStage(num_epochs=100, batch_size=128),
    ),
    sampling=Sampling(group_size=16, batch_rollouts=2880, contexts_per_task=50),
    ppo=PPO(num_iterations=20, minibatch_rollouts=24, learning_rate=1e-6),
    evaluation=Evaluation(contexts_per_task=50),
    num_updates=15,
    learner_threads=num_cpus(),
)
"""Source: RIPT-VLA, section 5.1; QueST for the supervised stages."""

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

ALL_STAGES = {"paper": PAPER, "released-code": RELEASED_CODE}
"""All three stages in one run."""

SINGLE_STAGES = {
    f"{name}-{stage}": replace(preset, name=f"{preset.name}-{stage}", stages=(stage,))
    for name, preset in ALL_STAGES.items()
    for stage in preset.all_stages
}
"""One stage per run; each starts from the run of the stage before it."""

PRESETS = ALL_STAGES | SINGLE_STAGES


def differences() -> Iterator[tuple[str, Any, Any]]:
    """Yield the name of every setting in which the presets differ, its value in the paper and in the released code."""
    paper, code = flatten(asdict(PAPER)), flatten(asdict(RELEASED_CODE))
    return ((name, paper[name], code[name]) for name in paper if paper[name] != code[name])


def print_differences() -> None:
    """Print the differences as a table."""
    print(f"{'setting':<34}{'paper':>12}{'released code':>16}")
    for setting, paper_value, code_value in differences():
        print(f"{setting:<34}{paper_value!s:>12}{code_value!s:>16}")


if __name__ == "__main__":
    if sys.argv[1:] == ["differences"]:
        print_differences()
    else:
        launch_preset(PRESETS, __doc__)
