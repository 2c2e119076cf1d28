"""Tiny but real components that check their inputs: a benchmark on a line and a continuous policy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ript_envs.contract import Benchmark, Environment, EnvironmentSpec, Observation, require_task
from ript_ray.policies.base import Decisions
from ript_ray.policies.state_dict import ModulePolicy
from ript_ray.types import Arrays

CHUNK = 3


@dataclass(frozen=True)
class LineBenchmark(Benchmark):
    """Move a point on a line to within 0.1 of its goal; the task names the side of the goal."""

    kind: Literal["line"] = field(default="line", kw_only=True)

    @property
    def spec(self) -> EnvironmentSpec:
        return EnvironmentSpec("the line", action_dim=1, state_dims={"state": 2}, max_steps=12)

    @property
    def tasks(self) -> tuple[str, ...]:
        return ("left", "right")

    def instruction(self, task: str) -> str:
        return f"go {task}"

    def make(self, task: str) -> Environment:
        require_task(task, self.tasks, "the line")
        return LineEnvironment()

    def draw_initial_state(self, task: str, seed: tuple[int, ...]) -> NDArray[np.float64]:
        side = -1.0 if task == "left" else 1.0
        return np.array([0.0, side * np.random.default_rng(seed).uniform(0.5, 1.0)])


class LineEnvironment:
    """Refuses to be stepped or observed after success."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.num_observations = 0
        self._solved = True

    def reset(self, initial_state: NDArray[np.float64]) -> None:
        assert initial_state.shape == (2,)
        self._position, self._goal = initial_state
        self._solved = False

    def step(self, action: NDArray[np.float32]) -> bool:
        assert not self._solved, "a finished episode was stepped"
        assert action.shape == (1,)
        assert abs(action[0]) <= 1
        self.num_steps += 1
        self._position += 0.2 * float(action[0])
        self._solved = abs(self._position - self._goal) < 0.1
        return self._solved

    def observe(self) -> Observation:
        assert not self._solved, "a finished episode was observed"
        self.num_observations += 1
        return {"state": np.array([self._position, self._goal], dtype=np.float32)}

    def render(self, camera: str) -> NDArray[np.uint8]:
        raise ValueError(f"the line has no camera {camera!r}")

    def expert_action(self) -> NDArray[np.float32]:
        return np.clip([5 * (self._goal - self._position)], -1, 1).astype(np.float32)

    def close(self) -> None:
        self._solved = True


class TinyChunkPolicy(ModulePolicy):
    """A continuous policy like OpenVLA-OFT: regressed mean, learned scale, scored per chunk step."""

    def __init__(self, head: Literal["gaussian", "laplace"]):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.mean = nn.Linear(2, CHUNK)
        self.log_scale = nn.Parameter(torch.full((CHUNK,), -0.5))
        self._distribution = torch.distributions.Normal if head == "gaussian" else torch.distributions.Laplace

    def act(
        self, observations: Arrays, instructions: Sequence[str], generators: Sequence[np.random.Generator]
    ) -> Decisions:
        state = self._given(observations["state"])
        assert state.shape == (len(instructions), 2)
        assert len(generators) == len(instructions)
        with torch.no_grad():
            distribution = self._at(state)
            uniforms = np.stack([generator.uniform(1e-6, 1 - 1e-6, CHUNK) for generator in generators])
            chunk_BC = distribution.icdf(self._given(uniforms).float())
            log_probs_BC = distribution.log_prob(chunk_BC)
        return Decisions(
            actions_BCA=chunk_BC.clamp(-1, 1).unsqueeze(-1).cpu().numpy(),
            record={"state": observations["state"], "chunk": chunk_BC.cpu().numpy()},
            log_probs_BU=log_probs_BC.cpu().numpy(),
            valid_BU=np.ones(chunk_BC.shape, dtype=np.bool_),
        )

    def act_deterministically(self, observations: Arrays, instructions: Sequence[str]) -> NDArray[np.float32]:
        return self.mean(self._given(observations["state"])).detach().clamp(-1, 1).unsqueeze(-1).cpu().numpy()

    def log_probs(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self._at(record["state"]).log_prob(record["chunk"])

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())

    def _given(self, array: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.log_scale.device)

    def _at(self, state: torch.Tensor) -> torch.distributions.Distribution:
        return self._distribution(self.mean(state), self.log_scale.exp())
