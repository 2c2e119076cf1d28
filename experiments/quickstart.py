"""Does RIPT lift a policy that saw one demonstration per task, in minutes and on two CPU cores?

Question: how far does interactive post-training with nothing but success or failure take a small QueST policy
    that was imitation-learned from a single demonstration of each of three MetaWorld tasks?
Source: RIPT-VLA (Tan et al. 2025), Algorithm 1 and section 5.3 (few-shot); sizes and step counts are ours.
Expected: success on held-out contexts rises by 30 points or more (docs/quickstart.md).
Hardware: two CPU cores, 6 GiB of memory (a run uses 2.4), no GPU.
Time: about six minutes.

Differences from the paper: low-dimensional observations (the hand; object and goal relative to it) instead of images; a
prior with 0.37 M parameters instead of 11.4 M, over 200 skills instead of 1000; chunks of 8 actions, all executed,
instead of 32 with 8 executed; K = 8 instead of 16, B = 96 instead of 2880, N = 8 passes over minibatches of 32 at a
learning rate of 2e-4 instead of 20 over minibatches of 24 at 1e-6; 300 training contexts per task instead of 50 (a
context costs only a reset); episodes of 150 steps instead of 500. Tokens are sampled from the whole vocabulary, not
from the top 5. The single demonstration has action noise (0.3), so that the skills cover more than one path.
"""

from ript_ray.cli.launch import launch
from ript_ray.config.data import Demonstrations
from ript_ray.config.experiment import Experiment
from ript_ray.config.rl import PPO, Evaluation, Sampling
from ript_ray.policies.quest.config import QuestConfig, QuestSFT
from ript_ray.policies.supervised import SupervisedStage

POLICY = QuestConfig(
    sensors=("relative",),
    chunk_length=8,
    num_executed=8,
    fsq_levels=(8, 5, 5),
    skill_width=64,
    skill_layers=(1, 2),
    prior_width=96,
    prior_layers=3,
    prior_heads=4,
    state_width=64,
    text_features=64,
    dropout=0.0,
    top_k=0,
)

EXPERIMENT = Experiment(
    name="quickstart",
    tasks=("button-press-topdown-v3", "faucet-open-v3", "window-open-v3"),
    policy=POLICY,
    demos=Demonstrations(num_per_task=1, action_noise=0.3),
    sft=QuestSFT(
        autoencoder=SupervisedStage(num_steps=500, batch_size=64, learning_rate=1.5e-3),
        prior=SupervisedStage(num_steps=200, batch_size=32, learning_rate=1.5e-3),
    ),
    sampling=Sampling(group_size=8, batch_rollouts=96, contexts_per_task=300, max_uniform_groups=200),
    ppo=PPO(num_iterations=8, minibatch_rollouts=32, parallel_passes=2, learning_rate=2e-4),
    evaluation=Evaluation(batch_size=8),
    num_updates=60,
    max_steps=150,
    learner_threads=1,
)

if __name__ == "__main__":
    launch(EXPERIMENT, __doc__)
