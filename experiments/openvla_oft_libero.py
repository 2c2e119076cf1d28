r"""RIPT on OpenVLA-OFT (7 B) through LoRA, on four LIBERO suites, as in the paper or as in the authors' released code.

Question: how much does post-training with nothing but success or failure add to the published OpenVLA-OFT, which
    already succeeds in 97 of 100 episodes?
Source: RIPT-VLA (Tan et al. 2025), sections 4.3, 5.1 and 5.2, table 1; the authors' scripts for whatever it does not
    state; OpenVLA-OFT (Kim et al. 2025) for images, horizons and how an episode begins.
Expected: success before and after RIPT, in %: goal 97.9 and 98.2, spatial 97.6 and 99.0, object 98.4 and 98.6, long
    92.9 and 94.4; four suites 96.7 and 97.6.
Hardware: the authors had four GPUs of 24 GB. Here, only a tiny checkpoint of the published layout has been
    post-trained, on CPUs. docs/gpu.md says which processes get GPUs.
Time: not measured at full size.

Each preset is a suite (spatial, object, goal, long) and a recipe (paper, released-code). It needs the published
checkpoint of the suite, its Laplace scale head, and the official demonstrations in the folder DATA, whose first states
are the contexts:

    python -m experiments.openvla_oft_libero goal-paper --demos.folder DATA \
        --policy.checkpoint openvla-7b-oft-finetuned-libero-goal --policy.scale-head LIBERO_GOAL_scale_header.pth \
        --cluster.num-actors 3 --cluster.gpus-per-actor 1 --cluster.learner-gpus 1 --cluster.env-processes 8

Without a published scale head, `--stages scale ript` in place of --policy.scale-head trains one first, by 500 steps on
the demonstrations; its curve is scale.png in the run's folder. An OpenVLA that was not fine-tuned is trained from the
beginning by `--policy.base pretrained --stages regression scale ript`. Without the demonstrations,
--sampling.context-source None draws contexts as LIBERO draws its init states. To go on from an adaptor that RIPT-VLA
has trained, name its folder by --policy.adaptor instead of a scale head. Where a GPU's memory allows it, a larger
--ppo.micro-batch-decisions takes less time, with the same result up to rounding.

What the presets are not, and every setting in which `paper` and `released-code` differ, is printed by

    python -m experiments.openvla_oft_libero differences

Resume an interrupted run with `ript-ray resume RUN`. The papers' evaluation of runs of all suites:

    ript-ray evaluate-libero runs/openvla-oft-{goal,spatial,object,long}/latest --horizon oft --deterministic
"""

import sys
from dataclasses import replace

from experiments.quest_ml45 import Difference, differences, print_table
from ript_envs.libero.benchmark import Libero, Suite
from ript_ray.cli.evaluate_libero import OFT_HORIZONS
from ript_ray.cli.launch import launch_preset
from ript_ray.config.experiment import Experiment
from ript_ray.config.rl import PPO, Evaluation, Sampling
from ript_ray.policies.openvla_oft.config import OpenVLAOFTConfig, OpenVLAOFTSFT
from ript_ray.types import RIPT

SUITES: dict[str, Suite] = {
    "spatial": "libero_spatial",
    "object": "libero_object",
    "goal": "libero_goal",
    "long": "libero_10",
}
"""The suites by the papers' names."""

TRAINED_BY_SCRIPTS = {
    "object": tuple(
        f"pick_up_the_{name}_and_place_it_in_the_basket"
        for name in ("salad_dressing", "butter", "milk", "chocolate_pudding")
    ),
    "long": (
        "LIVING_ROOM_SCENE2_put_both_the_alphabet_soup_and_the_tomato_sauce_in_the_basket",
        "LIVING_ROOM_SCENE5_put_the_white_mug_on_the_left_plate_and_put_the_yellow_and_white_mug_on_the_right_plate",
        "LIVING_ROOM_SCENE6_put_the_white_mug_on_the_plate_and_put_the_chocolate_pudding_to_the_right_of_the_plate",
        "LIVING_ROOM_SCENE1_put_both_the_alphabet_soup_and_the_cream_cheese_box_in_the_basket",
    ),
}
"""The tasks that the authors' scripts train on, where these are not all tasks of a suite."""


def paper(name: str) -> Experiment:
    """Return RIPT on a suite as in the paper; what it leaves open is as in the released code."""
    suite = SUITES[name]
    benchmark = Libero(suite=suite, image_size=256, settle_gripper="open")
    policy = OpenVLAOFTConfig(suite=suite, sampled_scale="as-scored", scale_factor=1.0)
    return Experiment(
        name=f"openvla-oft-{name}",
        tasks=benchmark.tasks,
        stages=(RIPT,),
        benchmark=benchmark,
        policy=policy,
        sft=OpenVLAOFTSFT(),
        sampling=Sampling(group_size=8, batch_rollouts=192, contexts_per_task=50, context_source="demos"),
        ppo=PPO(
            num_iterations=1,
            minibatch_rollouts=16,
            micro_batch_decisions=1,
            loss_average="rollout",
            learning_rates={"lora": 1e-4, "action-head": 1e-5},
            clip_low=0.1,
            clip_high=0.1,
            max_grad_norms={"lora": 1.0, "action-head": 1.0},
        ),
        evaluation=Evaluation(contexts_per_task=50, context_source="benchmark", deterministic=True),
        num_updates=12,
        checkpoint_every=1,
        max_steps=OFT_HORIZONS[suite],
    )


def released_code(name: str) -> Experiment:
    """Return RIPT on a suite with the settings of the authors' scripts."""
    base = paper(name)
    rate = 1e-5 if name == "goal" else 5e-5
    scale_factor = 2.0 if name == "spatial" else 5.0
    return replace(
        base,
        tasks=TRAINED_BY_SCRIPTS.get(name, base.tasks),
        policy=OpenVLAOFTConfig(suite=SUITES[name], sampled_scale="unclamped", scale_factor=scale_factor),
        ppo=replace(base.ppo, learning_rates={"lora": rate, "action-head": rate}),
    )


PRESETS = {f"{name}-paper": paper(name) for name in SUITES} | {
    f"{name}-released-code": released_code(name) for name in SUITES
}

BESIDES_SETTINGS = """\
What all presets share, and how it differs from the paper, the authors' code or both:

simulator       Here: MuJoCo 3.3.0, with LIBERO's tasks and init states. Code: does not pin MuJoCo; from 3.3.3 on, the
                floors of LIBERO-Object are darker.
scale head      Paper: trained by maximum likelihood for 500 steps. Code: published, how it was trained was not; fixed
                during RIPT. Here: the published one (policy.scale-head), or one of the stage scale, fixed during RIPT.
ratio           Paper: per rollout. Code: per step of a chunk, summed over the 7 entries of an action. Here: as in the
                code.
average         Paper: not stated. Code: each rollout weighs the same, as the mean of its own steps. Here: as in the
                code (ppo.loss-average rollout). All 8 steps of the last chunk count, also those after success.
scoring         Paper: not stated. Code: samples with the scale times a factor, unclamped, and scores with the clamped
                scale without the factor, so that ratios are not those of the distribution that acted. Here: as stated
                above, paper or code (policy.sampled-scale, policy.scale-factor).
precision       Code: weights, moments and all arithmetic in bfloat16; small steps round away. Here: products in
                bfloat16, what is trained and its moments in float32.
minibatches     Paper: not stated. Code: 4 rollouts on each of 4 GPUs. Here: 16, whatever the number of learners.
last query      Code: leaves out a query whose first action ends the episode. Here: it counts.
contexts        Paper and code: the first states of the demonstrations. Here: the same, in double precision.
tasks           Code: trains on 4 tasks of object and of long (salad dressing, butter, milk, chocolate pudding; soup and
                sauce, two mugs, mug and pudding, soup and cream cheese). Here: its presets do, too, and are evaluated
                on these; ript-ray evaluate-libero evaluates on all 10.
search          Code: never ends if no mixed group is found. Here: limited by max-uniform-groups.
evaluation      Code: on the benchmark's 50 init states of each task, on the mean, after every update. Here: likewise,
                before and after; --evaluation.every adds evaluations on other contexts, so that nothing is chosen on
                what is reported.
updates         Paper: does not state M. Code: 12; here both. A cosine schedule in the code's settings is longer than
                its runs and never takes a step; here the learning rates are constant.
"""


def print_differences() -> None:
    """Print the settings that differ as a table for each suite, then the differences that are no settings."""
    for name, suite in SUITES.items():
        print(f"{suite}:\n")
        print_table(map(_shortened, differences(paper(name), released_code(name))))
        print()
    print(BESIDES_SETTINGS, end="")


def _shortened(difference: Difference) -> Difference:
    name, theirs, code = difference
    return (f"number of {name}", len(theirs), len(code)) if name == "tasks" else difference


if __name__ == "__main__":
    if sys.argv[1:] == ["differences"]:
        print_differences()
    else:
        launch_preset(PRESETS, __doc__)
