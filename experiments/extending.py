"""Can a benchmark and a policy of one's own be post-trained, without a line changed in ript_ray?

Question: does RIPT lift Laplace heads on a frozen base, trained on two noisy demonstrations? See docs/extending.md.
Source: ours; the heads are those of OpenVLA-OFT in RIPT-VLA (section 4.3), with 300 parameters instead of 7 B.
Expected: success on held-out contexts rises by 20 points or more (docs/extending.md).
Hardware: two CPU cores, 4 GiB of memory, no GPU.
Time: under a minute.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ript_envs.contract import Benchmark, Environment, EnvironmentSpec, Observation, require_task
from ript_ray import PPO, Demonstrations, Experiment, Sampling
from ript_ray.cli.launch import launch
from ript_ray.policies.base import Decisions, PolicyConfig
from ript_ray.policies.state_dict import ModulePolicy
from ript_ray.policies.supervised import LossFn, SFTConfig, SupervisedStage, SupervisedTask, Windows
from ript_ray.types import Arrays


@dataclass(frozen=True)
class Line(Benchmark):
    """A point on a line must come to rest within 0.05 of its goal."""

    kind: Literal["line"] = field(default="line", kw_only=True)
    spec = EnvironmentSpec("the line", action_dim=1, state_dims={"state": 2}, control_hz=10.0, max_steps=16)
    tasks = ("left", "right")

    def make(self, task: str) -> Environment:
        require_task(task, self.tasks, self.spec.name)
        return PointOnLine()

    def draw_initial_state(self, task: str, seed: tuple[int, ...]) -> NDArray[np.float64]:
        require_task(task, self.tasks, self.spec.name)
        return np.array([0.0, (-1.0 if task == "left" else 1.0) * np.random.default_rng(seed).uniform(0.3, 1.0)])


class PointOnLine:  # the simulator; its state is position and goal
    def reset(self, initial_state: NDArray[np.float64]) -> None:
        self.position, self.goal = initial_state

    def step(self, action: NDArray[np.float32]) -> bool:
        move = 0.2 * float(np.clip(action[0], -1.0, 1.0))
        self.position += move
        return bool(abs(self.position - self.goal) < 0.05 and abs(move) < 0.05)

    def observe(self) -> Observation:
        return {"state": np.array([self.position, self.goal], np.float32)}

    def render(self, camera: str) -> NDArray[np.uint8]:
        raise ValueError(camera)  # there is none

    def expert_action(self) -> NDArray[np.float32]:
        return np.array([np.clip(5.0 * (self.goal - self.position), -1.0, 1.0)], np.float32)

    def close(self) -> None: ...


@dataclass(frozen=True)
class LaplaceSFT(SFTConfig):  # one supervised stage, which trains the means of the heads
    stages: ClassVar[tuple[str, ...]] = ("regression",)
    kind: Literal["laplace"] = field(default="laplace", kw_only=True)
    regression: SupervisedStage = field(default_factory=lambda: SupervisedStage(num_steps=150, learning_rate=3e-3))

    def tasks(self) -> tuple[SupervisedTask, ...]:
        return (Regression(self.regression),)


@dataclass(frozen=True)
class LaplaceConfig(PolicyConfig):
    """Laplace heads on a frozen base: each action of a chunk is a unit with a probability of its own."""

    sft_type: ClassVar[type[SFTConfig]] = LaplaceSFT
    is_deterministic: ClassVar[bool] = True  # it can act on the means
    kind: Literal["laplace"] = field(default="laplace", kw_only=True)
    sensors: tuple[str, ...] = ("state",)
    chunk_length: int = 4

    def build(self, spec: EnvironmentSpec) -> "LaplacePolicy":
        return LaplacePolicy(self, spec.state_dims[self.sensors[0]], spec.action_dim)


class LaplacePolicy(ModulePolicy):  # acts, and scores what was done
    def __init__(self, config: LaplaceConfig, num_inputs: int, action_dim: int):
        super().__init__()
        self.sensor, self.shape_CA = config.sensors[0], (config.chunk_length, action_dim)
        base = torch.randn(num_inputs, 64, generator=torch.Generator().manual_seed(0))
        self.register_buffer("base", base, persistent=False)  # `build` makes it again, so no checkpoint holds it
        self.mean = torch.nn.Linear(64, config.chunk_length * action_dim)
        self.log_scale = torch.nn.Parameter(torch.full(self.shape_CA, -1.0))

    def heads(self, state: torch.Tensor) -> torch.distributions.Laplace:
        mean = self.mean(torch.tanh(state @ self.get_buffer("base"))).view(-1, *self.shape_CA)
        return torch.distributions.Laplace(mean, self.log_scale.exp().expand_as(mean))

    @torch.no_grad()
    def act(
        self, observations: Arrays, instructions: Sequence[str], generators: Sequence[np.random.Generator]
    ) -> Decisions:
        heads = self.heads(torch.from_numpy(observations[self.sensor]))
        uniforms = np.stack([generator.uniform(1e-6, 1 - 1e-6, self.shape_CA) for generator in generators])
        chunk_BCA = heads.icdf(torch.from_numpy(uniforms).float())
        log_probs_BC = heads.log_prob(chunk_BCA).sum(-1).numpy()
        record = {"state": observations[self.sensor], "chunk": chunk_BCA.numpy()}
        return Decisions(chunk_BCA.clamp(-1.0, 1.0).numpy(), record, log_probs_BC, np.ones_like(log_probs_BC, bool))

    def act_deterministically(self, observations: Arrays, instructions: Sequence[str]) -> NDArray[np.float32]:
        return self.heads(torch.from_numpy(observations[self.sensor])).mean.detach().clamp(-1.0, 1.0).numpy()

    def log_probs(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.heads(record["state"]).log_prob(record["chunk"]).sum(-1)


@dataclass(frozen=True)
class Regression(SupervisedTask):  # mean absolute error: the Laplace likelihood at a fixed scale
    settings: SupervisedStage
    name, title, unit, purpose, reads_images = "regression", "regression of chunks", "mean action error", 100, False

    def parameters(self, policy: LaplacePolicy) -> Mapping[str, torch.nn.Parameter]:
        return dict(policy.mean.named_parameters())

    def loss_fn(self, policy: LaplacePolicy, windows: Windows) -> LossFn:
        chunks_WCA = torch.from_numpy(windows.chunks_WCA)
        return lambda batch, _: (policy.heads(batch.inputs[policy.sensor]).mean - chunks_WCA[batch.rows]).abs().mean()


EXPERIMENT = Experiment(
    name="extending",
    tasks=Line.tasks,
    benchmark=Line(),
    policy=LaplaceConfig(),
    sft=LaplaceSFT(),
    stages=("regression", "ript"),
    demos=Demonstrations(num_per_task=2, action_noise=0.3),
    sampling=Sampling(group_size=8, batch_rollouts=64, contexts_per_task=50),
    ppo=PPO(num_iterations=4, minibatch_rollouts=32, learning_rate=3e-3),
    num_updates=30,
    max_steps=16,
)

if __name__ == "__main__":
    launch(EXPERIMENT, __doc__)
