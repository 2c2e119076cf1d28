"""Does RIPT lift a policy that sees only a camera image and its own arm, on two CPU cores?

Question: how far does post-training with nothing but success or failure take a small QueST policy that was
    imitation-learned, from images, with three demonstrations of each of three MetaWorld tasks?
Source: RIPT-VLA (Tan et al. 2025), section 5.3 (ML45, five demonstrations: 63.6 -> 76.0 %); sizes and steps are ours.
Expected: success on held-out contexts rises by 30 points or more (docs/reproduce.md).
Hardware: two CPU cores, 6 GiB of memory, no GPU; software OpenGL (`ript-ray doctor` checks for it).
Time: about fifteen minutes.

Differences from the paper: images of 128 x 128 without shadows, scaled down to 64 x 64, and encoders with 16 and 32
channels instead of 64 and 128; a prior with 0.37 M parameters instead of 11.4 M, over 200 skills instead of 1000;
chunks of 8 actions, all executed, instead of 32 with 8 executed; K = 8 instead of 16, B = 96 instead of 2880, N = 8
passes over minibatches of 32 at a learning rate of 2e-4 instead of 20 over minibatches of 24 at 1e-6; 300 training
contexts per task instead of 50; episodes of 150 steps instead of 500. Tokens are sampled from the whole vocabulary, not
from the top 5. Demonstrations have action noise (0.3).
"""

from dataclasses import replace

from experiments import quickstart
from ript_envs.metaworld.benchmark import MetaWorld
from ript_ray.cli.launch import launch
from ript_ray.config.data import Demonstrations
from ript_ray.config.rl import Evaluation
from ript_ray.policies.quest.config import QuestSFT
from ript_ray.policies.supervised import SupervisedStage

POLICY = replace(quickstart.POLICY, image_size=64, image_channels=16, image_width=128, state_width=32)

EXPERIMENT = replace(
    quickstart.EXPERIMENT,
    name="pixels",
    tasks=("drawer-open-v3", "faucet-open-v3", "window-open-v3"),
    benchmark=MetaWorld(rendering="fast"),
    policy=replace(POLICY, cameras=("corner_rgb",), sensors=("robot_states",)),
    demos=Demonstrations(num_per_task=3, num_held_out=2, action_noise=0.3),
    sft=QuestSFT(
        autoencoder=SupervisedStage(num_steps=500, batch_size=64, learning_rate=1.5e-3),
        prior=SupervisedStage(num_steps=400, batch_size=32, learning_rate=1e-3),
    ),
    evaluation=Evaluation(),
)

if __name__ == "__main__":
    launch(EXPERIMENT, __doc__)
