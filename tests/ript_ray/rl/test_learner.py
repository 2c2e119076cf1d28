import re
from dataclasses import replace

import numpy as np
import pytest

from ript_ray.errors import CheckpointError
from ript_ray.rl.learner import Learner
from ript_ray.rl.protocols import Components
from ript_ray.types import Group, Version
from tests.conftest import line_parts
from tests.fakes import TinyChunkPolicy
from tests.ript_ray.rl.test_learner_oracle import make_groups


def learner_of(parts: Components) -> Learner:
    return Learner(parts.build_policy, parts.ppo, seed=parts.seed, num_threads=1)


def test_each_update_increments_the_version_and_uses_only_the_given_groups() -> None:
    parts = line_parts(lambda: TinyChunkPolicy("laplace"))
    made = make_groups(parts.build_policy(), 4)
    learner = learner_of(parts)
    for group in made:
        learner.receive(group)
    assert learner.weights().version == 0
    report = learner.update([1, 3])
    assert report.num_decisions == sum(len(rollout.log_probs_TU) for i in (1, 3) for rollout in made[i].rollouts)
    assert learner.weights().version == 1
    with pytest.raises(KeyError):
        learner.update([1])


def test_the_result_does_not_depend_on_the_order_of_arrival() -> None:
    parts = line_parts(lambda: TinyChunkPolicy("laplace"))
    made = make_groups(parts.build_policy(), 4)
    checksums = set()
    for arrival in ([0, 1, 2, 3], [3, 1, 0, 2]):
        learner = learner_of(parts)
        for index in arrival:
            learner.receive(made[index])
        learner.update([0, 1, 2, 3])
        checksums.add(learner.weights().checksum)
    assert len(checksums) == 1


def poisoned(groups: list[Group]) -> list[Group]:
    """The same groups with old log-probabilities so low that ratios overflow."""
    rollouts = [
        replace(rollout, log_probs_TU=np.full_like(rollout.log_probs_TU, -1e30)) for rollout in groups[0].rollouts
    ]
    return [replace(groups[0], rollouts=tuple(rollouts)), *groups[1:]]


def saved(learner: Learner) -> dict[str, np.ndarray]:
    return {**learner.state(), "weights": learner.weights().buffer}


def test_an_update_with_a_non_finite_loss_is_rolled_back_and_the_next_one_works() -> None:
    parts = line_parts(lambda: TinyChunkPolicy("gaussian"), minibatch_rollouts=4)
    made = make_groups(parts.build_policy(), 4)
    learner, untouched = learner_of(parts), learner_of(parts)
    for each in (learner, untouched):
        for group in made:
            each.receive(group)
        assert each.update([0, 1, 2, 3]).error is None
    before = saved(learner)
    for group in poisoned(made):
        learner.receive(group)
    report = learner.update([0, 1, 2, 3])
    assert report.error is not None
    assert re.fullmatch(r"update 2: the loss is \S+, the gradient norm is nan: not finite", report.error)
    after = saved(learner)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert learner.weights().version == 2
    for group in made:
        learner.receive(group)
    assert learner.update([0, 1, 2, 3]).error is None


def test_an_update_with_non_finite_weights_is_rolled_back() -> None:
    parts = line_parts(
        lambda: TinyChunkPolicy("gaussian"),
        num_iterations=1,
        minibatch_rollouts=100,
        learning_rate=1e20,
        weight_decay=1e20,
    )
    learner = learner_of(parts)
    for group in make_groups(parts.build_policy(), 2):
        learner.receive(group)
    before = saved(learner)["weights"]
    assert learner.update([0, 1]).error == "update 1: the weights are not finite"
    np.testing.assert_array_equal(saved(learner)["weights"], before)


def test_incomplete_moments_are_refused() -> None:
    parts = line_parts(lambda: TinyChunkPolicy("gaussian"))
    learner = learner_of(parts)
    for group in make_groups(parts.build_policy(), 2):
        learner.receive(group)
    learner.update([0, 1])
    state = learner.state()
    del state["exp_avg/log_scale"]
    with pytest.raises(CheckpointError, match=r"does not fit the policy:\n  missing exp_avg/log_scale$"):
        learner_of(parts).restore(Version(1), state)
    learner_of(parts).restore(Version(1), {})  # every update so far was skipped
