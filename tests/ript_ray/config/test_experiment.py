from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import pytest

from ript_ray.config.data import Demonstrations
from ript_ray.config.experiment import Experiment
from ript_ray.config.rl import PPO, Evaluation, Sampling
from ript_ray.errors import ConfigError
from ript_ray.policies.quest.config import QuestConfig
from ript_ray.policies.supervised import SupervisedStage
from ript_ray.runtime.cluster import Cluster

EXPERIMENT = Experiment("name", ("reach-v3",))


class TwoGroups(QuestConfig):
    parameter_groups: ClassVar[Mapping[str, str]] = {"lora": "base.", "head": "head."}


def test_defaults_are_the_papers() -> None:
    assert (EXPERIMENT.sampling.group_size, EXPERIMENT.sampling.batch_rollouts) == (16, 2880)
    assert EXPERIMENT.sampling.groups_per_update == 180
    assert (EXPERIMENT.ppo.num_iterations, EXPERIMENT.ppo.minibatch_rollouts) == (20, 24)
    assert (EXPERIMENT.ppo.learning_rate, EXPERIMENT.ppo.clip_low, EXPERIMENT.ppo.clip_high) == (1e-6, 0.2, 0.2)
    assert EXPERIMENT.evaluation.contexts_per_task == EXPERIMENT.sampling.contexts_per_task == 50
    assert isinstance(EXPERIMENT.policy, QuestConfig)
    assert (EXPERIMENT.policy.chunk_length, EXPERIMENT.policy.num_executed, EXPERIMENT.policy.top_k) == (32, 8, 5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cluster(in_process=True, num_actors=2), r"cluster\.num-actors has no effect with cluster\.in-process"),
        (lambda: Sampling(group_size=1), r"group-size \(K\) must be at least 2, not 1"),
        (lambda: Sampling(group_size=8, batch_rollouts=20), r"multiple of the group size 8, not 20"),
        (lambda: Sampling(batch_rollouts=0), "positive multiple"),
        (lambda: Sampling(contexts_per_task=0), "contexts-per-task must be at least 1, not 0"),
        (lambda: Sampling(rollout_noise_m=-0.1), r"rollout-noise-m must be at least 0\.0, not -0\.1"),
        (lambda: Sampling(max_uniform_groups=0), "max-uniform-groups must be at least 1"),
        (lambda: PPO(num_iterations=0), r"num-iterations \(N\) must be at least 1"),
        (lambda: PPO(minibatch_rollouts=0), "minibatch-rollouts must be at least 1"),
        (lambda: PPO(clip_low=1.0), r"clip-low must be above 0 and below 1, not 1\.0"),
        (lambda: PPO(clip_high=0.0), "clip-high must be above 0"),
        (lambda: PPO(learning_rate=float("nan")), "learning-rate must be above 0 and finite, not nan"),
        (lambda: PPO(learning_rate=float("inf")), "learning-rate must be above 0 and finite, not inf"),
        (lambda: PPO(parallel_passes=0), "parallel-passes must be at least 1, not 0"),
        (lambda: PPO(micro_batch_decisions=0), "micro-batch-decisions must be at least 1, not 0"),
        (
            lambda: PPO(learning_rates={"head": 0.0}),
            r"ppo\.learning-rates of head must be above 0",
        ),
        (lambda: PPO(max_grad_norms={"head": -1.0}), r"ppo\.max-grad-norms of head must be above 0"),
        (
            lambda: replace(EXPERIMENT, ppo=PPO(learning_rates={"head": 1e-5})),
            r"ppo\.learning-rates names head; the parameter groups of policy quest: none",
        ),
        (
            lambda: replace(EXPERIMENT, policy=TwoGroups(), ppo=PPO(max_grad_norms={"lora": 1.0, "heads": 1.0})),
            r"ppo\.max-grad-norms names heads; the parameter groups of policy quest: lora, head$",
        ),
        (lambda: PPO(weight_decay=-1), "weight-decay must be at least 0"),
        (lambda: Demonstrations(num_per_task=0), "num-per-task must be at least 1"),
        (lambda: Demonstrations(action_noise=2), r"action-noise must be from 0\.0 to 1\.0, not 2"),
        (lambda: SupervisedStage(num_steps=0, batch_size=1), "num-steps of a supervised stage must be at least 1"),
        (lambda: Evaluation(contexts_per_task=0), r"evaluation\.contexts-per-task must be at least 1"),
        (lambda: Evaluation(batch_size=0), "batch-size must be at least 1"),
        (lambda: Cluster(num_actors=0), "num-actors must be at least 1"),
        (lambda: Cluster(max_environments=0), "max-environments must be at least 1"),
        (lambda: Cluster(max_tasks=0), "max-tasks must be at least 1"),
        (lambda: Cluster(groups_per_actor=0), "groups-per-actor must be at least 1"),
        (lambda: Cluster(groups_per_actor=2), r"groups-per-actor is 2; above 1 it needs cluster\.env-processes"),
        (
            lambda: Cluster(in_process=True, groups_per_actor=2, env_processes=1),
            r"cluster\.groups-per-actor has no effect with cluster\.in-process",
        ),
        (lambda: Cluster(cpus_per_actor=0), "cpus-per-actor must be at least 0.0001"),
        (lambda: Cluster(learner_cpus=1e-5), "learner-cpus, unless it is 0, must be at least 0.0001, not 1e-05"),
        (lambda: replace(EXPERIMENT, tasks=()), "at least one task"),
        (lambda: replace(EXPERIMENT, tasks=("reach-v3", "reach-v3")), "must differ"),
        (lambda: replace(EXPERIMENT, tasks=("drawr-open-v3",)), "no task 'drawr-open-v3': did you mean drawer-open-v3"),
        (lambda: replace(EXPERIMENT, policy=QuestConfig(sensors=("depth",))), "no sensor 'depth'; it has state"),
        (lambda: replace(EXPERIMENT, policy=QuestConfig(cameras=("wrist",))), "no camera 'wrist'; it has corner_rgb"),
        (lambda: replace(EXPERIMENT, sampling=Sampling(max_policy_lag=-1)), "max-policy-lag must be at least 0"),
        (lambda: Cluster(straggler_factor=1.0), "straggler-factor must be above 1"),
        (lambda: replace(EXPERIMENT, name="../up"), "name must be a word"),
        (lambda: replace(EXPERIMENT, num_updates=0), "num-updates must be at least 1"),
        (lambda: replace(EXPERIMENT, max_steps=501), "max-steps must be from 1 to 500, not 501"),
        (lambda: replace(EXPERIMENT, seed=-1), "seed must be from 0 to 2147483647, not -1"),
        (lambda: PPO(weight_decay=float("inf")), "weight-decay must be finite, not inf"),
    ],
)
def test_impossible_settings_are_refused_with_field_value_and_range(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
