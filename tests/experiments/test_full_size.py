"""Every launcher's policy, at its full size, acts and learns in one tiny update."""

from dataclasses import replace

import numpy as np
import pytest

from experiments import extending, libero_object, openvla_oft_small, pixels, quest_libero, quest_ml45, quickstart
from ript_ray.config.experiment import Experiment
from ript_ray.policies.base import Policy
from ript_ray.policies.quest.config import TEXT
from ript_ray.rl.learner import Learner
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.types import RIPT, Arrays, Group, Rollout, Version

LAUNCHERS: dict[str, Experiment] = {
    "quickstart": quickstart.EXPERIMENT,
    "pixels": pixels.EXPERIMENT,
    "extending": extending.EXPERIMENT,
    "openvla_oft_small": openvla_oft_small.EXPERIMENT,
    **{f"quest_ml45 {name}": preset for name, preset in quest_ml45.PRESETS.items() if preset.stages[-1] == RIPT},
    "libero_object": libero_object.EXPERIMENT,
    **{f"quest_libero {name}": quest_libero.PRESETS[name] for name in ("goal-paper", "90-released-code")},
}
NUM_QUERIES = 2


def observations_of(experiment: Experiment, num_rows: int, generator: np.random.Generator) -> Arrays:
    spec, policy = experiment.benchmark.spec, experiment.policy
    arrays: Arrays = {
        name: generator.integers(0, 256, (num_rows, *spec.image_shapes[name]), np.uint8) for name in policy.cameras
    }
    arrays |= {
        name: generator.normal(size=(num_rows, spec.state_dims[name])).astype(np.float32) for name in policy.sensors
    }
    return arrays


def with_made_up_text(policy: SavedPolicy) -> SavedPolicy:
    """Return a policy that has the text features of the first instruction, if it reads any."""
    if getattr(policy.experiment.policy, "task_input", "") != "features":
        return policy
    return replace(policy, arrays={**policy.arrays, TEXT + policy.experiment.instructions[0]: np.ones(512, np.float32)})


def group_of(experiment: Experiment, policy: Policy, index: int) -> Group:
    """A group of rollouts with `NUM_QUERIES` queries each; the first of them was solved."""
    size, generator = experiment.sampling.group_size, np.random.default_rng(index)
    instruction = experiment.benchmark.instruction(experiment.tasks[0])
    queries = [
        policy.act(
            observations_of(experiment, size, generator),
            [instruction] * size,
            [np.random.default_rng((index, query, row)) for row in range(size)],
        )
        for query in range(NUM_QUERIES)
    ]
    rollouts = tuple(
        Rollout(
            success=row == 0,
            num_steps=1,
            record={name: np.stack([query.record[name][row] for query in queries]) for name in queries[0].record},
            log_probs_TU=np.stack([query.log_probs_BU[row] for query in queries]),
            valid_TU=np.stack([query.valid_BU[row] for query in queries]),
        )
        for row in range(size)
    )
    return Group(index, Version(0), rollouts)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launchers_policy_acts_and_learns_at_full_size(name: str) -> None:
    experiment = replace(LAUNCHERS[name], stages=(RIPT,), ppo=replace(LAUNCHERS[name].ppo, num_iterations=1))
    parts = with_made_up_text(SavedPolicy.initial(experiment)).components()
    learner = Learner(parts.build_policy, parts.ppo, seed=0, num_threads=parts.learner_threads)
    before, policy = learner.checksum(), parts.build_policy()
    for index in range(2):
        learner.receive(group_of(experiment, policy, index))
    report = learner.update([0, 1])
    assert report.error is None
    assert report.num_decisions == 2 * experiment.sampling.group_size * NUM_QUERIES
    assert report.first_mean_ratio == pytest.approx(1.0, abs=1e-5)
    assert report.first_approx_kl == pytest.approx(0.0, abs=1e-5)
    assert learner.checksum() != before
