"""Does RIPT lift a policy that picks groceries out of a cluttered scene, seen through two cameras, on two CPU cores?

Question: how far does post-training with nothing but success or failure take a small QueST policy that was
    imitation-learned, from images, with a few scripted demonstrations of each of two LIBERO-Object tasks?
Source: RIPT-VLA (Tan et al. 2025), section 5.1 (LIBERO-Object: 93.6 -> 98.2 %, all ten tasks); sizes are ours.
Expected: success on the benchmark's held-out init states rises by 15 points or more (README, "LIBERO").
Hardware: two CPU cores, 8 GiB of memory, no GPU; software OpenGL (`ript-ray doctor` checks for it).
Time: about ninety minutes.
"""

from dataclasses import replace

from experiments import quickstart
from ript_envs.libero.benchmark import Libero
from ript_ray.cli.launch import launch
from ript_ray.config.data import Demonstrations
from ript_ray.config.rl import Evaluation
from ript_ray.policies.quest.config import QuestSFT
from ript_ray.policies.supervised import SupervisedStage

EXPERIMENT = replace(
    quickstart.EXPERIMENT,
    name="libero-object",
    tasks=("pick_up_the_alphabet_soup_and_place_it_in_the_basket", "pick_up_the_milk_and_place_it_in_the_basket"),
    benchmark=Libero(suite="libero_object", rendering="fast", simplified_meshes=True, small_textures=True),
    policy=replace(
        quickstart.POLICY,
        cameras=("agentview_rgb", "eye_in_hand_rgb"),
        sensors=("joint_states", "ee_pos", "gripper_states"),
        image_size=64,
        image_channels=16,
        image_width=128,
        state_width=32,
    ),
    demos=Demonstrations(num_per_task=8, num_held_out=2, action_noise=0.2),
    sft=QuestSFT(
        autoencoder=SupervisedStage(num_steps=800, batch_size=64, learning_rate=1.5e-3),
        prior=SupervisedStage(num_steps=800, batch_size=32, learning_rate=1e-3),
    ),
    sampling=replace(quickstart.EXPERIMENT.sampling, contexts_per_task=50),
    evaluation=Evaluation(context_source="benchmark"),
    num_updates=30,
    max_steps=180,
)

if __name__ == "__main__":
    launch(EXPERIMENT, __doc__)
