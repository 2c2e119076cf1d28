import itertools
from dataclasses import replace

import numpy as np
import pytest

from ript_ray.config.rl import Sampling
from ript_ray.errors import ConfigError
from ript_ray.rl.parts import PartialGroups, join_groups, join_summaries, split
from ript_ray.rl.rollout_worker import RolloutWorker
from ript_ray.rl.train import group_request
from ript_ray.types import RolloutRequest
from tests.conftest import line_stream
from tests.fakes import LineEnvironment
from tests.faulty import POLICY


def request(rollouts_per_request: int | None) -> RolloutRequest:
    sampling = Sampling(group_size=6, batch_rollouts=6, rollouts_per_request=rollouts_per_request)
    return group_request(line_stream(), 3, sampling=sampling, seed=5)


def test_the_parts_of_a_request_are_its_rollouts_in_order() -> None:
    whole = request(None)
    assert split(whole) == [whole]
    parts = split(request(2))
    assert [part.part for part in parts] == [0, 1, 2]
    assert [seed for part in parts for seed in part.seeds] == list(whole.seeds)
    assert [len(part.contexts) for part in parts] == [2, 2, 2]


def test_a_group_joined_from_parts_in_any_order_is_the_group_of_one_actor() -> None:
    worker = RolloutWorker(POLICY, lambda task: LineEnvironment(), 12)
    summary, group = worker.roll(request(None))
    parts = [worker.roll(part) for part in split(request(2))]
    for order in itertools.permutations(range(3)):
        partial = PartialGroups[int]()
        *early, joined = [partial.add(parts[part][0], part) for part in order]
        assert early == [None, None]
        assert joined is not None
        assert joined[1] == (0, 1, 2)
        assert (joined[0].successes, joined[0].num_steps) == (summary.successes, summary.num_steps)
        assert (joined[0].num_bytes, joined[0].layout, joined[0].error) == (summary.num_bytes, summary.layout, None)
        assert len(partial) == 0
    again = join_groups([part for _, part in parts])
    for one, other in zip(group.rollouts, again.rollouts, strict=True):
        np.testing.assert_allclose(one.log_probs_TU, other.log_probs_TU, rtol=1e-5)


def test_a_group_with_a_malformed_part_or_parts_of_different_layouts_is_malformed() -> None:
    worker = RolloutWorker(POLICY, lambda task: LineEnvironment(), 12)
    summaries = [worker.roll(part)[0] for part in split(request(3))]
    broken = replace(summaries[1], error="a log-probability is not finite")
    assert join_summaries([summaries[0], broken]).error == "a log-probability is not finite"
    other = replace(summaries[1], layout=(("state", (3,), "float32"),))
    assert str(join_summaries([summaries[0], other]).error).startswith("its parts differ in layout")


@pytest.mark.parametrize("number", [0, 4, 7])
def test_a_group_is_split_into_parts_of_one_size_only(number: int) -> None:
    with pytest.raises(ConfigError, match=f"rollouts-per-request must be a divisor of the group size 6, not {number}"):
        request(number)
