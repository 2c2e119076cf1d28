"""What is traced without memory is what a policy with weights takes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import extending, quickstart
from ript_envs.libero.benchmark import Libero
from ript_ray.planning.footprint import footprint_of
from ript_ray.policies.openvla_oft.config import OpenVLAOFTConfig
from ript_ray.types import Arrays
from tests.oft_fixture import CHECKPOINT

EXPERIMENT = quickstart.EXPERIMENT
ROWS = 8


def test_weights_records_and_passes_are_those_of_the_policy_with_values() -> None:
    config, spec = EXPERIMENT.policy, EXPERIMENT.benchmark.spec
    found = footprint_of(config, spec, EXPERIMENT.instructions, ROWS)
    policy = config.build(spec)
    assert isinstance(policy, torch.nn.Module)
    assert found.weights_bytes == sum(value.nbytes for value in (*policy.parameters(), *policy.buffers()))
    assert found.trained == {"": sum(value.nbytes for value in policy.trainable().values())}
    observations: Arrays = {name: np.zeros((1, size), np.float32) for name, size in spec.state_dims.items()}
    made = policy.act(observations, EXPERIMENT.instructions[:1], [np.random.default_rng(0)])
    parts = (*made.record.values(), made.log_probs_BU, made.valid_BU)
    assert found.decision_bytes == sum(array.nbytes for array in parts)
    assert found.executed == made.actions_BCA.shape[1]

    record = {name: torch.from_numpy(np.repeat(array, 8, axis=0)) for name, array in made.record.items()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.log_probs(record).sum()
    weights = {value.untyped_storage().data_ptr() for value in policy.parameters()}
    activations = sum(size for pointer, size in saved.items() if pointer not in weights)
    assert activations <= found.pass_bytes(8) <= activations + 2 * found.trained_bytes
    assert found.pass_bytes(16) > found.pass_bytes(8)


def test_a_policy_whose_distribution_checks_its_numbers_is_traced() -> None:
    config = extending.EXPERIMENT.policy
    found = footprint_of(config, extending.EXPERIMENT.benchmark.spec, extending.EXPERIMENT.instructions, ROWS)
    assert 0 < found.num_trained < found.num_weights


def full_size(folder: Path) -> Path:
    """A checkpoint's small files with the published sizes, without weights."""
    for path in CHECKPOINT.iterdir():
        if path.suffix == ".json" or "token" in path.name:
            shutil.copy(path, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["fixture_vision_dims"]
    config["text_config"] = {"vocab_size": 32064, "pad_token_id": 32000}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
def test_openvla_oft_takes_at_full_size_what_its_published_files_say(tmp_path: Path) -> None:
    benchmark = Libero(suite="libero_goal")
    config = OpenVLAOFTConfig(checkpoint=full_size(tmp_path), suite="libero_goal")
    found = footprint_of(config, benchmark.spec, [benchmark.instruction(benchmark.tasks[0])], ROWS)
    assert 15.0e9 < found.weights["bfloat16"] < 15.2e9  # 7.54 B of the base, LoRA's untrained part
    assert 79e6 < found.trained["lora"] / 4 < 81e6  # of 110.8 M, those of the language model's layers
    assert found.trained["action-head"] / 4 == pytest.approx(151e6, rel=0.01)
    assert found.decision_bytes > 2 * 224 * 224 * 3
    assert 1e9 < found.pass_bytes(1) < 4e9


def test_a_tiny_openvla_oft_is_traced_by_its_parameter_groups() -> None:
    benchmark = Libero(suite="libero_goal")
    config = OpenVLAOFTConfig(checkpoint=CHECKPOINT, suite="libero_goal")
    found = footprint_of(config, benchmark.spec, [benchmark.instruction(benchmark.tasks[0])], ROWS)
    assert {*found.trained} == {"lora", "action-head"}
    assert {*found.weights} == {"bfloat16", "float32"}
    assert found.executed == 8
