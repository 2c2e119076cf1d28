import math
from dataclasses import replace

import numpy as np
import pytest

from ript_ray.rl.validation import layout_of, validate_group
from ript_ray.types import Group, Rollout, RolloutRequest, Version
from tests.conftest import line_stream


def rollout(**changes) -> Rollout:
    valid = Rollout(
        success=True,
        num_steps=6,
        record={"state": np.zeros((2, 3), np.float32), "token": np.zeros((2, 4), np.int64)},
        log_probs_TU=np.full((2, 4), -1.0, np.float32),
        valid_TU=np.ones((2, 4), np.bool_),
    )
    return replace(valid, **changes)


REQUEST = RolloutRequest(7, (line_stream().at(0),) * 2, ((1,), (2,)))


def error_of(*rollouts: Rollout, index: int = 7) -> str | None:
    return validate_group(Group(index, Version(0), rollouts), REQUEST)


def test_a_valid_group_has_no_error() -> None:
    assert error_of(rollout(), rollout(success=np.bool_(False))) is None


def test_masked_units_may_hold_any_value() -> None:
    log_probs = np.full((2, 4), -1.0, np.float32)
    log_probs[1, 2] = -math.inf
    valid = np.ones((2, 4), np.bool_)
    valid[1, 2] = False
    assert error_of(rollout(log_probs_TU=log_probs, valid_TU=valid), rollout()) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"success": math.nan}, "rollout 1: the environment returned success nan, not a bool"),
        ({"success": 0.5}, "rollout 1: the environment returned success 0.5, not a bool"),
        ({"log_probs_TU": np.full((2, 4), math.nan, np.float32)}, "rollout 1: a log-probability is not finite"),
        ({"log_probs_TU": np.full((2, 4), -math.inf, np.float32)}, "rollout 1: a log-probability is not finite"),
        ({"log_probs_TU": np.full((3, 4), -1.0, np.float32)}, "(3, 4) and mask (2, 4) bool do not match"),
        ({"log_probs_TU": np.zeros((0, 4), np.float32), "valid_TU": np.zeros((0, 4), np.bool_)}, "do not match"),
        ({"valid_TU": np.ones((2, 4), np.float32)}, "mask (2, 4) float32 do not match"),
        ({"record": {"state": np.zeros((3, 3), np.float32)}}, "record state has 3 rows for 2 decisions"),
        ({"record": {"state": np.full((2, 3), math.inf, np.float32)}}, "record state is not finite"),
        ({"record": {"state": np.zeros((2, 5), np.float32)}}, "its rollouts differ in layout"),
    ],
)
def test_a_malformed_rollout_is_named_with_its_value(changes, message: str) -> None:
    assert message in str(error_of(rollout(), rollout(**changes)))


def test_a_group_for_another_request_or_of_another_size_is_refused() -> None:
    assert "(index, rollouts) is (8, 2), not (7, 2)" in str(error_of(rollout(), rollout(), index=8))
    assert "(index, rollouts) is (7, 1), not (7, 2)" in str(error_of(rollout()))


def test_groups_of_different_shapes_have_different_layouts() -> None:
    wide = rollout(log_probs_TU=np.zeros((2, 5), np.float32), valid_TU=np.ones((2, 5), np.bool_))
    assert layout_of(Group(0, Version(0), (rollout(),))) != layout_of(Group(1, Version(0), (wide,)))
