"""QueST on MetaWorld's ML45: autoencoder, prior and RIPT, as in the paper or as in the authors' released code.

Question: how well do 8 tokens out of 1000 represent 32 actions of 45 tasks (autoencoder), how often does the
    imitation-learned policy succeed on unseen contexts (prior), how much does post-training with nothing but success or
    failure add (ript), and how much on five new tasks of which there are five demonstrations each (few-shot)?
Source: QueST (Mete et al. 2024), sections 4.1 and 4.2, for the supervised stages; RIPT-VLA (Tan et al. 2025),
    sections 5.1 and 5.3 and table 2, for RIPT. The configuration of RIPT on ML45 was not released: this is LIBERO's.
Expected: autoencoder: a mean action error that levels off, on held-out demonstrations too. prior: 91.0 % success over
    ML45 (RIPT-VLA, table 2); others reproduced 84.3 %. ript: 92.2 % (+1.2 points). few-shot: 63.6 % before RIPT and
    76.0 % after it (+12.4 points); QueST reports 71.9 % before it, others reproduced 39.0 %. All of these are figures
    for MetaWorld v2; here it is MetaWorld v3 for the authors' v2, so expect the gains rather than the levels.
Hardware: one core per rollout actor, which renders images, one learner process, and memory for the demonstrations. GPUs
    are not used yet; with CPUs only, choose few tasks and a smaller policy for the supervised stages.
Time: not measured at full size.

Each preset is a run: `paper` and `released-code` train all three stages, `paper-autoencoder`, `paper-prior`,
`paper-ript` (and likewise for `released-code`) one stage each, in runs/quest-ml45-<stage>/. The supervised stages read
recorded demonstrations, 100 per task for the released code and 50 for the paper, and two more that are held out; RIPT
reads none and also starts from an imported checkpoint:

    ript-ray demos metaworld --task ml45-train --episodes 102 --out data
    python -m experiments.quest_ml45 paper-autoencoder --demos.folder data
    python -m experiments.quest_ml45 paper-prior --demos.folder data --start-from runs/quest-ml45-autoencoder/latest
    python -m experiments.quest_ml45 paper-ript --start-from runs/quest-ml45-prior/latest
    python -m experiments.quest_ml45 released-code-ript --start-from models/quest-ml45

The preset `few-shot` fine-tunes the prior of the 45 tasks on the five others, with the first five demonstrations of
each, and then runs RIPT from the initial states of these demonstrations; `few-shot-prior` and `few-shot-ript` are its
single stages, which both need the folder of the demonstrations:

    ript-ray demos metaworld --task ml45-test --episodes 5 --out data
    python -m experiments.quest_ml45 few-shot --demos.folder data --start-from runs/quest-ml45-prior/latest

What the presets are not, and every setting in which `paper` and `released-code` differ, is printed by

    python -m experiments.quest_ml45 differences

Resume an interrupted run with `ript-ray resume RUN`.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

from ript_envs.metaworld.benchmark import MetaWorld
from ript_envs.metaworld.tasks import ML45_HELD_OUT, ML45_TRAIN, QUEST_TASK_ORDER
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

UPDATES_PER_EPOCH = 50 * len(ML45_TRAIN) // 180
"""Updates between two steps of the released code's schedule: 50 contexts per task, 180 groups per update."""

PAPER = Experiment(
    name="quest-ml45",
    tasks=ML45_TRAIN,
    benchmark=BENCHMARK,
    policy=published("metaworld", tuple(map(BENCHMARK.instruction, QUEST_TASK_ORDER))),
    demos=Demonstrations(num_per_task=50, num_held_out=2, action_noise=0.2),
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
"""Source: RIPT-VLA, section 5.1; QueST for the epochs of the supervised stages."""

RELEASED_CODE = replace(
    PAPER,
    demos=Demonstrations(num_per_task=100, num_held_out=2, action_noise=0.2),
    sft=QuestSFT(
        autoencoder=SupervisedStage(num_epochs=201, schedule_epochs=200, batch_size=256),  # epochs 0 to 200
        prior=SupervisedStage(num_epochs=101, schedule_epochs=100, batch_size=128),
        noisy_tokens=True,
    ),
    sampling=Sampling(group_size=8, batch_rollouts=144 * 8, contexts_per_task=50),
    ppo=PPO(
        num_iterations=20,
        minibatch_rollouts=6,
        learning_rate=1e-6,
        final_learning_rate=9e-7,
        schedule_updates=20 * UPDATES_PER_EPOCH,
        schedule_every=UPDATES_PER_EPOCH,
    ),
    evaluation=Evaluation(contexts_per_task=48),
    num_updates=30,
    checkpoint_every=10,
)
"""Source: the authors' scripts for LIBERO's suites; QueST's for ML45."""

FEW_SHOT = replace(
    PAPER,
    name="quest-ml45-few-shot",
    tasks=ML45_HELD_OUT,
    stages=("prior", "ript"),
    demos=Demonstrations(num_per_task=5, action_noise=0.2),
    sft=QuestSFT(prior=SupervisedStage(num_epochs=201, schedule_epochs=200, batch_size=128), noisy_tokens=True),
    sampling=replace(PAPER.sampling, contexts_per_task=5, context_source="demos"),
)
"""Source: QueST's code for tasks, demonstrations and the supervised stage; RIPT-VLA, section 5.1, for RIPT."""

ALL_STAGES = {"paper": PAPER, "released-code": RELEASED_CODE, "few-shot": FEW_SHOT}
"""All stages in one run."""

SINGLE_STAGES = {
    f"{name}-{stage}": replace(preset, name=f"{preset.name}-{stage}", stages=(stage,))
    for name, preset in ALL_STAGES.items()
    for stage in preset.stages
}
"""One stage per run; each starts from the run of the stage before it."""

PRESETS = ALL_STAGES | SINGLE_STAGES

BESIDES_SETTINGS = """\
What all presets share, and how it differs from the paper, the authors' code or both:

simulator       Here: MetaWorld v3 for the authors' v2. Success rates of the two cannot be compared one to one.
ratio           Paper: per rollout. Code: per skill token. Here: per token.
early stop      Paper: collects B rollouts. Code: aims at 180 groups over all ranks and stops at 80 % (144). Here:
                collects batch-rollouts, which is B = 16 x 180 or 144 x 8.
minibatches     Paper: 24 rollouts. Code: 2 on each of 3 GPUs, averaged per GPU, then over GPUs. Here: one mean over
                all tokens of the minibatch, whatever the number of learners.
optimizer steps Code: 4,800 per update, because the 36 groups that the early stop leaves out are padded and still step
                Adam, with a gradient of zero. Here: 3,840 with the released code's settings, and no padding.
analogue        The code's settings are those of its scripts for LIBERO's suites of 10 tasks. Those for LIBERO-90, with
                more tasks than ML45: 15 updates and a final learning rate of 1e-8 which the schedule never approaches.
search          Code: never ends if no mixed group is found. Here: limited by max-uniform-groups.
first query     Code: on LIBERO, not on MetaWorld, the first query of an episode sees a stale observation, from a
                random reset instead of the context. Here: never.
scoring         Paper: not stated. Code: tokens are drawn from the top 5 and scored against all 1000. Here: as in the
                code (policy.scored-against).
contexts        Paper: the initial states of the demonstrations. Code: MetaWorld's are drawn without a seed, differently
                in every process. Here: drawn from the seed, the same in every process, or, with few-shot, those of the
                demonstrations (sampling.context-source demos).
held-out        The initial states of drawer-open, drawer-close, window-close, plate-slide-back and
                plate-slide-back-side vary in one dimension, by at most 0.2 m: a held-out context is 1 to 2 mm from the
                nearest of 50 training contexts. Success on these tasks' held-out contexts is interpolation.
threads         Here: the learner uses all cores of the machine that starts the run (learner-threads), so the last bits
                of results differ between machines with different numbers of cores.
failures        Code: demonstrations include failed episodes (ript-ray demos --keep-failures). Here: none.
demonstrations  Paper: 50 per task. Code: QueST's own 100. Here: two more per task, not trained on, for the errors of
                the supervised stages; none with few-shot.
few-shot        Paper: does not name the tasks and draws the demonstrations uniformly. Code (QueST's; RIPT's was not
                released): the five tasks of ml45-test, the first five demonstrations; its fine-tuning also has the
                decoder in the optimizer, with an L1 loss of weight 0 by default. Here: as QueST, but the decoder is
                fixed.
"""


Difference = tuple[str, Any, Any]
"""Name of a setting, its value in the paper and in the released code."""


def differences(paper: Experiment = PAPER, code: Experiment = RELEASED_CODE) -> Iterator[Difference]:
    """Yield every setting in which two presets differ."""
    theirs, released = flatten(asdict(paper)), flatten(asdict(code))
    return ((name, theirs[name], released[name]) for name in theirs if theirs[name] != released[name])


def print_table(rows: Iterable[Difference]) -> None:
    """Print the settings that differ."""
    print(f"{'setting':<34}{'paper':>12}{'released code':>16}")
    for setting, paper_value, code_value in rows:
        print(f"{setting:<34}{paper_value!s:>12}{code_value!s:>16}")


def print_differences() -> None:
    """Print the settings that differ as a table, then the differences that are no settings."""
    print_table(differences())
    print(f"\n{BESIDES_SETTINGS}", end="")


if __name__ == "__main__":
    if sys.argv[1:] == ["differences"]:
        print_differences()
    else:
        launch_preset(PRESETS, __doc__)
