"""Does RIPT through LoRA lift a small OpenVLA-OFT that was trained here from nothing, on two CPU cores?

Question: how far does post-training with nothing but success or failure take a policy of OpenVLA-OFT's shape (two
    vision towers, projector, bidirectional language model, action head, Laplace scale head) that was imitation-learned,
    from images, with a few demonstrations of each of three MetaWorld tasks?
Source: RIPT-VLA (Tan et al. 2025), sections 4.3 and 5.1 (OpenVLA-OFT on LIBERO, 96.7 -> 97.5 %); sizes and steps are
    ours.
Expected: 57.3 [49.3, 65.0] -> 86.7 [80.3, 91.2] % of 150 held-out contexts, +29.3 [+20.0, +38.1] points (seed 0),
    acting on the mean before and after; training rollouts, which sample, go from 44 to about 80 %.
Hardware: two CPU cores, 6 GiB of memory, no GPU; software OpenGL (`ript-ray doctor` checks for it).
Time: 70 minutes, 11 of them before RIPT.

Differences from the paper: a model of 12 M parameters (towers of width 96 on images of 56 x 56, a language model of
width 128, words for tokens) trained from random weights instead of OpenVLA's 7 B; MetaWorld through one camera instead
of LIBERO through two; K = 8, but B = 96 instead of 192, N = 3 instead of 1, one learning rate for adapter and head;
samples are drawn with the scale that they are scored with.
"""

from dataclasses import replace

from experiments import pixels
from ript_ray.cli.launch import launch
from ript_ray.config.data import Demonstrations
from ript_ray.config.rl import PPO, Evaluation
from ript_ray.policies.openvla_oft.config import OpenVLAOFTConfig, OpenVLAOFTSFT
from ript_ray.policies.supervised import Augmentation, SupervisedStage

EXPERIMENT = replace(
    pixels.EXPERIMENT,
    name="openvla-oft-small",
    stages=("regression", "scale", "ript"),
    policy=OpenVLAOFTConfig(
        base="new",
        cameras=("corner_rgb",),
        sensors=("robot_states",),
        precision="float32",
        sampled_scale="as-scored",
        scale_factor=1.0,
    ),
    demos=Demonstrations(num_per_task=4, num_held_out=2, action_noise=0.3),
    evaluation=Evaluation(deterministic=True),
    sft=OpenVLAOFTSFT(
        regression=SupervisedStage(num_steps=500, batch_size=64, learning_rate=1e-3, max_grad_norm=1.0),
        scale=SupervisedStage(num_steps=200, batch_size=64, learning_rate=1e-3),
        augmentation=Augmentation(color=0.1, shift=2),
    ),
    ppo=PPO(num_iterations=3, minibatch_rollouts=32, learning_rate=2e-4, max_grad_norm=1.0),
    num_updates=50,
)

if __name__ == "__main__":
    launch(EXPERIMENT, __doc__)
