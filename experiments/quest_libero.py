"""QueST on LIBERO's five suites: autoencoder, prior and RIPT, as in the paper or as in the authors' released code.

Question: how often does the published 20 M policy, trained on the 50 demonstrations of each task of a suite, succeed on
    the benchmark's 50 init states per task (prior), and how much does post-training with nothing but success or failure
    add (ript)? And on LIBERO-Long, where it starts from the prior of LIBERO-90 and 1 to 10 demonstrations (few-shot)?
Source: RIPT-VLA (Tan et al. 2025), sections 5.1 to 5.3, tables 1 and 2, figure 2; QueST (Mete et al. 2024) for the
    supervised stages; the authors' scripts for whatever the papers do not state.
Expected: success before and after RIPT, in %: goal 80.8 and 92.7, spatial 87.4 and 95.6, object 93.6 and 98.4, long
    68.8 and 87.5, LIBERO-90 88.6 and 94.3; few-shot on LIBERO-Long with 5 demonstrations 50.2 and 71.4, with 1 a gain
    of 20.8 points. MuJoCo is newer than the authors', so expect the gains rather than the levels.
Hardware: one core and 2 to 5 GB of memory per rollout actor, which simulates and renders, and one learner process. GPUs
    are not used yet; with CPUs only, choose few tasks and a smaller policy for the supervised stages.
Time: not measured at full size.

Each preset is a suite (spatial, object, goal, long, 90) and a recipe (paper, released-code). It trains all three stages
in one run, on the official demonstrations in the folder DATA:

    ript-ray embed-text --download
    python -m experiments.quest_libero goal-paper --demos.folder DATA

The first line is needed once: the policy reads CLIP's features of its instructions. `--stages` trains some of the
stages, each from where the last one ended, or from an imported checkpoint:

    python -m experiments.quest_libero 90-paper --demos.folder DATA --stages autoencoder
    python -m experiments.quest_libero 90-paper --demos.folder DATA --stages prior --start-from runs/quest-libero-90/RUN
    python -m experiments.quest_libero goal-released-code --demos.folder DATA --stages ript --start-from models/goal

A preset `few-shot-N` fine-tunes the prior of LIBERO-90 on LIBERO-Long with N demonstrations per task, and then runs
RIPT from the initial states of these:

    python -m experiments.quest_libero few-shot-5 --demos.folder DATA --start-from runs/quest-libero-90/latest

What the presets are not, and every setting in which `paper` and `released-code` differ, is printed by

    python -m experiments.quest_libero differences

Resume an interrupted run with `ript-ray resume RUN`. All of LIBERO: docs/libero.md.
"""

import sys
from dataclasses import dataclass, replace

from experiments.quest_ml45 import differences, print_table
from ript_envs.libero.benchmark import Libero, Suite
from ript_ray.cli.launch import launch_preset
from ript_ray.config.data import Demonstrations
from ript_ray.config.experiment import Experiment
from ript_ray.config.rl import PPO, Evaluation, Sampling
from ript_ray.policies.quest.config import QuestSFT
from ript_ray.policies.quest.presets import published
from ript_ray.policies.supervised import SupervisedStage
from ript_ray.runtime.host import num_cpus

SUITES: dict[str, Suite] = {
    "spatial": "libero_spatial",
    "object": "libero_object",
    "goal": "libero_goal",
    "long": "libero_10",
    "90": "libero_90",
}
"""The suites by the papers' names."""

FEW_SHOT_DEMONSTRATIONS = (1, 2, 3, 4, 5, 10)
"""Demonstrations per task. Source: RIPT-VLA, figure 2 (1 to 10) and table 2 (5)."""


@dataclass(frozen=True)
class Script:
    """What the authors' scripts for LIBERO-90 and for the suites of ten tasks have of their own.

    Attributes:
        prior_epochs: Epochs of the supervised prior.
        num_updates: Updates of RIPT.
        checkpoint_every: Updates between two checkpoints.
        final_learning_rate: End of RIPT's schedule.
        schedule_epochs: Its length, in epochs of 50 contexts per task.
    """

    prior_epochs: int
    num_updates: int
    checkpoint_every: int
    final_learning_rate: float
    schedule_epochs: int


TEN_TASKS = Script(200, 30, 10, 9e-7, 20)
LIBERO_90 = Script(20, 15, 5, 1e-8, 6)


def script_of(suite: str) -> Script:
    """Return what the scripts for a suite have of their own."""
    return LIBERO_90 if suite == "libero_90" else TEN_TASKS


def paper(name: str) -> Experiment:
    """Return the three stages of a suite as in the paper; what it leaves open is as in the released code."""
    benchmark = Libero(suite=SUITES[name])
    script = script_of(benchmark.suite)
    return Experiment(
        name=f"quest-libero-{name}",
        tasks=benchmark.tasks,
        benchmark=benchmark,
        policy=published("libero"),
        demos=Demonstrations(num_per_task=50, action_noise=0.0),
        sft=QuestSFT(
            autoencoder=SupervisedStage(num_epochs=100, batch_size=256),
            prior=SupervisedStage(num_epochs=script.prior_epochs, batch_size=128),
        ),
        sampling=Sampling(group_size=16, batch_rollouts=2880, contexts_per_task=50, context_source="demos"),
        ppo=PPO(num_iterations=20, minibatch_rollouts=24, learning_rate=1e-6),
        evaluation=Evaluation(contexts_per_task=50, context_source="benchmark"),
        num_updates=script.num_updates,
        max_steps=600,
        learner_threads=num_cpus(),
    )


def released_code(name: str) -> Experiment:
    """Return the three stages of a suite with the settings of the authors' scripts."""
    base, script = paper(name), script_of(SUITES[name])
    updates_per_epoch = 50 * len(base.tasks) // 180
    return replace(
        base,
        benchmark=Libero(suite=SUITES[name], reset_mode="legacy"),
        sft=QuestSFT(
            autoencoder=SupervisedStage(num_epochs=101, schedule_epochs=100, batch_size=256),  # epochs 0 to 100
            prior=SupervisedStage(
                num_epochs=script.prior_epochs + 1, schedule_epochs=script.prior_epochs, batch_size=128
            ),
            noisy_tokens=True,
        ),
        sampling=replace(base.sampling, group_size=8, batch_rollouts=144 * 8),
        ppo=PPO(
            num_iterations=20,
            minibatch_rollouts=6,
            learning_rate=1e-6,
            final_learning_rate=script.final_learning_rate,
            schedule_updates=script.schedule_epochs * updates_per_epoch,
            schedule_every=updates_per_epoch,
            recompute_log_probs=True,
        ),
        evaluation=replace(base.evaluation, contexts_per_task=48, batch_size=8),
        checkpoint_every=script.checkpoint_every,
    )


def few_shot(num_demonstrations: int) -> Experiment:
    """Return the fine-tuning of LIBERO-90's prior on LIBERO-Long with few demonstrations, and RIPT after it."""
    base = paper("long")
    return replace(
        base,
        name=f"quest-libero-few-shot-{num_demonstrations}",
        stages=("prior", "ript"),
        demos=replace(base.demos, num_per_task=num_demonstrations, selection="spread"),
        sft=QuestSFT(prior=SupervisedStage(num_epochs=201, schedule_epochs=200, batch_size=128), noisy_tokens=True),
        sampling=replace(base.sampling, contexts_per_task=num_demonstrations),
    )


PRESETS = (
    {f"{name}-paper": paper(name) for name in SUITES}
    | {f"{name}-released-code": released_code(name) for name in SUITES}
    | {f"few-shot-{number}": few_shot(number) for number in FEW_SHOT_DEMONSTRATIONS}
)

BESIDES_SETTINGS = """\
What all presets share, and how it differs from the paper, the authors' code or both:

simulator       Here: MuJoCo 3.3.0, with LIBERO's tasks and init states. Code: does not pin MuJoCo; from 3.3.3 on, the
                floors of LIBERO-Object are darker.
epochs          Paper: those of QueST's code. Code: 100 for the autoencoder, but the names of released checkpoints
                suggest 900 for the suites of ten tasks (--sft.autoencoder.num-epochs 900).
ratio           Paper: per rollout. Code: per skill token. Here: per token.
early stop      Paper: collects B rollouts. Code: aims at 180 groups over all ranks and stops at 80 % (144). Here:
                collects batch-rollouts, which is B = 16 x 180 or 144 x 8.
minibatches     Paper: 24 rollouts. Code: 2 on each of 3 GPUs (LIBERO-90: 1 on each of 6), averaged per GPU, then over
                GPUs. Here: one mean over all tokens of the minibatch, whatever the number of learners.
optimizer steps Code: 4,800 per update, because the 36 groups that the early stop leaves out are padded and still step
                Adam, with a gradient of zero. Here: 3,840 with the released code's settings, and no padding.
search          Code: never ends if no mixed group is found. Here: limited by max-uniform-groups.
first query     Code: sees a stale observation, from a random reset instead of the context, and nothing settles
                (benchmark.reset-mode legacy). Paper: does not say.
contexts        Paper and code: the first states of the demonstrations. Here: the same, in double precision.
evaluation      Code: on the first 48 init states, after every update (LIBERO-90: every third). Here: before and after;
                --evaluation.every adds evaluations on other contexts, so that nothing is chosen on what is reported.
updates         Paper: does not state M. Code: 30, and 15 for LIBERO-90; here both.
scoring         Paper: not stated. Code: tokens are drawn from the top 5 and scored against all 1000. Here: as in the
                code (policy.scored-against).
text            CLIP's features of the instruction, as in the code, which computes them at each start.
threads         Here: the learner uses all cores of the machine that starts the run (learner-threads), so the last bits
                of results differ between machines with different numbers of cores.
few-shot        Paper: draws the demonstrations uniformly. Code (QueST's; RIPT's was not released): evenly spaced ones,
                here too; its fine-tuning also trains the decoder, by an L1 loss of weight 10. Here: it is fixed.
"""


def print_differences() -> None:
    """Print the settings that differ as tables, then the differences that are no settings."""
    for title, name in (("suites of ten tasks", "goal"), ("LIBERO-90", "90")):
        print(f"{title}:\n")
        print_table(differences(paper(name), released_code(name)))
        print()
    print(BESIDES_SETTINGS, end="")


if __name__ == "__main__":
    if sys.argv[1:] == ["differences"]:
        print_differences()
    else:
        launch_preset(PRESETS, __doc__)
