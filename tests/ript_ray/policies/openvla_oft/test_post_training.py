"""The tiny OpenVLA-OFT is post-trained by the same loop as every policy."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ript_envs.contract import Observation
from ript_ray.config.rl import PPO, Sampling
from ript_ray.policies.openvla_oft.config import OpenVLAOFTConfig
from ript_ray.policies.openvla_oft.policy import OpenVLAOFTPolicy
from ript_ray.rl.protocols import Components
from ript_ray.rl.train import train
from ript_ray.runtime.serial import SerialRuntime
from ript_ray.types import Arrays
from tests.conftest import line_stream
from tests.openvla_oft_fixture import ADAPTOR
from tests.ript_ray.policies.openvla_oft.test_policy import SPEC, TINY

OFT_PPO = PPO(
    num_iterations=2,
    minibatch_rollouts=4,
    loss_average="rollout",
    clip_low=0.1,
    clip_high=0.1,
    learning_rate=1e-3,
    learning_rates={"action-head": 1e-4},
    max_grad_norms={"action-head": 1.0},
)


class Gripper:
    """The task is to open the gripper first; the images are noise."""

    def reset(self, initial_state: NDArray[np.float64]) -> None:
        self._rng = np.random.default_rng(int(1e6 * abs(initial_state[1])))
        self._num_steps = 0

    def step(self, action: NDArray[np.float32]) -> bool:
        self._num_steps += 1
        return bool(self._num_steps == 1 and action[-1] < 0)

    def observe(self) -> Observation:
        sensors = {name: self._rng.uniform(-1, 1, dim).astype(np.float32) for name, dim in SPEC.state_dims.items()}
        return {**sensors, **{camera: self.render(camera) for camera in SPEC.image_shapes}}

    def render(self, camera: str) -> NDArray[np.uint8]:
        return self._rng.integers(256, size=SPEC.image_shapes[camera], dtype=np.uint8)

    def close(self) -> None: ...


def trained(config: OpenVLAOFTConfig) -> tuple[OpenVLAOFTPolicy, Arrays]:
    """The policy after an update, and its arrays before."""
    policies: list[OpenVLAOFTPolicy] = []

    def build() -> OpenVLAOFTPolicy:
        torch.manual_seed(0)
        policies.append(config.build(SPEC))
        return policies[-1]

    parts = Components(
        build_policy=build,
        make_environment=lambda task: Gripper(),
        max_steps=8,
        ppo=OFT_PPO,
        seed=5,
        learner_threads=1,
        parameter_groups=config.parameter_groups,
    )
    sampling = Sampling(group_size=4, batch_rollouts=8, max_uniform_groups=200)
    train(SerialRuntime(parts), line_stream(), sampling=sampling, num_updates=1, seed=5)
    return policies[0], build().state_arrays()


def test_an_update_trains_the_adapter_and_the_action_head_and_gives_the_same_bits_again() -> None:
    policy, before = trained(replace(TINY, adaptor=ADAPTOR))
    after = policy.state_arrays()
    changed = {name for name in before if not np.array_equal(after[name], before[name])}
    assert any(".lora_A." in name for name in changed)
    assert any(".lora_B." in name for name in changed)
    assert any(name.startswith("action_head.") for name in changed)
    assert not any(name.startswith("scale_head.") for name in changed)
    again, _ = trained(replace(TINY, adaptor=ADAPTOR))
    for name, array in again.state_arrays().items():
        np.testing.assert_array_equal(array, after[name])


def test_a_new_adapter_begins_to_learn_in_bfloat16() -> None:
    policy, before = trained(replace(TINY, precision="bfloat16"))
    after = policy.state_arrays()
    zero = [name for name in before if ".lora_B." in name]
    assert not any(before[name].any() for name in zero)
    assert all(after[name].any() for name in zero)
