import numpy as np
import pytest
import torch

from ript_ray.config.data import Demonstrations
from ript_ray.data.demonstrations import Demonstration, record_demonstrations
from ript_ray.data.windows import make_windows
from ript_ray.errors import RiptError
from ript_ray.policies.quest.config import QuestSFT
from ript_ray.policies.quest.policy import QuestPolicy
from ript_ray.policies.supervised import SupervisedStage, SupervisedTask, Windows
from ript_ray.sft.trainer import SupervisedTrainer
from tests.conftest import tiny_quest
from tests.fakes import LineBenchmark

BENCHMARK = LineBenchmark()
STAGE = SupervisedStage(num_steps=300, batch_size=32, learning_rate=3e-3)
BOTH = QuestSFT(autoencoder=STAGE, prior=STAGE)


def record(num_per_task: int = 2, action_noise: float = 0.0, max_steps: int = 12) -> list[Demonstration]:
    settings = Demonstrations(num_per_task=num_per_task, action_noise=action_noise, max_attempts=3)
    return [
        demonstration
        for task in BENCHMARK.tasks
        for demonstration in record_demonstrations(BENCHMARK, task, settings=settings, max_steps=max_steps, seed=1)
    ]


def fit(task: SupervisedTask, policy: QuestPolicy, windows: Windows) -> list[float]:
    policy.train()
    parameters, loss_fn = task.parameters(policy), task.loss_fn(policy, windows)
    trainer = SupervisedTrainer(parameters, loss_fn, task.reader(policy, windows), settings=task.settings, seed=1)
    losses = list(trainer.steps())
    policy.eval()
    return losses


def test_demonstrations_are_successes_and_the_same_every_time() -> None:
    first, again = record(), record()
    assert [demonstration.instruction for demonstration in first] == ["go left"] * 2 + ["go right"] * 2
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.actions_TA, other.actions_TA)
        position, goal = np.asarray(one.observations["state"])[-1]
        assert abs(position + 0.2 * one.actions_TA[-1, 0] - goal) < 0.1


def test_noise_differs_between_tasks_and_attempts() -> None:
    noises = {demonstration.actions_TA[:3].tobytes() for demonstration in record(3, action_noise=0.3)}
    assert len(noises) == 6


def test_an_expert_that_keeps_failing_is_named() -> None:
    with pytest.raises(RiptError, match="the expert of left failed 3 times in a row within 1 steps"):
        record(max_steps=1)


def test_windows_start_at_every_step_and_repeat_the_last_action_past_the_end() -> None:
    actions = np.arange(5, dtype=np.float32)[:, None]
    states = {"state": np.arange(10, dtype=np.float32).reshape(5, 2)}
    windows = make_windows([Demonstration("go left", states, actions)], chunk_length=4)
    assert windows.chunks_WCA[..., 0].tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 4], [3, 4, 4, 4], [4, 4, 4, 4]]
    np.testing.assert_array_equal(windows.observations["state"], states["state"])
    assert windows.instructions == ("go left",) * 5


def changed(before: dict[str, np.ndarray], policy: QuestPolicy) -> set[str]:
    after = policy.state_arrays()
    return {name.split(".")[0] for name in before if (before[name] != after[name]).any()}


def test_each_stage_learns_and_changes_only_its_own_parameters() -> None:
    policy = tiny_quest()
    windows = make_windows(record(), policy.settings.chunk_length)
    BOTH.tasks()[0].prepare(policy, windows)
    parts = {
        "autoencoder": {"autoencoder"},
        "prior": {"policy_prior", "lowdim_encoders", "obs_proj", "task_encoder"},
    }
    for task in BOTH.tasks():
        before, error = policy.state_arrays(), task.error(policy, windows)
        losses = fit(task, policy, windows)
        assert len(losses) == STAGE.num_steps
        assert changed(before, policy) == parts.pop(task.name)
        assert np.mean(losses[-30:]) < 0.5 * losses[0]
        assert task.error(policy, windows) < 0.5 * error
    assert not parts


def test_states_are_standardized_with_a_minimum_scale() -> None:
    policy = tiny_quest()
    states = np.stack([np.linspace(0, 4, 50), np.full(50, 3.0)], axis=1).astype(np.float32)
    policy.fit_standardizer({"state": states}, min_scale=0.05)
    encoder = policy.lowdim_encoders["state"]
    torch.testing.assert_close(encoder.offset, torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(encoder.scale, torch.tensor([float(states[:, 0].std()), 0.05]))
