"""Does RIPT lift a policy that picks groceries out of clutter, seen through two cameras, on two CPU cores?

Question: how far does post-training with nothing but success or failure take a small QueST policy that was
    imitation-learned, from images, with eight scripted demonstrations of each of two LIBERO-Object tasks?
Source: RIPT-VLA (Tan et al. 2025), section 5.1 (LIBERO-Object, ten tasks: 93.6 -> 98.4 %); sizes and steps are ours.
Expected: success on the benchmark's held-out init states rises by 15 points or more (docs/libero.md).
Hardware: two CPU cores, 10 GiB of memory, no GPU; software OpenGL (`ript-ray doctor` checks for it).
Time: about an hour.

The demonstrations are scripted, not LIBERO's, which people recorded: the figures cannot be held against published ones.

Further differences from the paper: two tasks of ten; images with simplified meshes, small textures and no shadows,
scaled down to 64 x 64; encoders with 16 and 32 channels instead of 64 and 128; a prior with 0.37 M parameters instead
of 11.4 M, over 200 skills instead of 1000; chunks of 8 actions, all executed, instead of 32 with 8 executed; hashed
words for CLIP's text features; K = 8 instead of 16, B = 96 instead of 2880, N = 8 passes over minibatches of 32 at a
learning rate of 2e-4 instead of 20 over minibatches of 24 at 1e-6; contexts drawn as LIBERO draws its init states
instead of those of the demonstrations; episodes of 180 steps instead of 600. Tokens are sampled from the whole
vocabulary, not from the top 5. Demonstrations have action noise (0.2).
"""

from dataclasses import replace

from experiments import pixels, quickstart
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
        pixels.POLICY,
        cameras=("agentview_rgb", "eye_in_hand_rgb"),
        sensors=("joint_states", "ee_pos", "gripper_states"),
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
