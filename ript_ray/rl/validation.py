"""Validation of groups in the actor that made them, so that a malformed group is never transferred."""

import numpy as np

from ript_ray.types import Group, Layout, Rollout, RolloutRequest


def validate_group(group: Group, request: RolloutRequest) -> str | None:
    """Return what is wrong with a group, naming the rollout and the value; None if it is valid."""
    if group.index != request.index or len(group.rollouts) != len(request.seeds):
        made, wanted = (group.index, len(group.rollouts)), (request.index, len(request.seeds))
        return f"it does not match its request: (index, rollouts) is {made}, not {wanted}"
    for member, rollout in enumerate(group.rollouts):
        problem = _validate_rollout(rollout, request.keep_record)
        if problem:
            return f"rollout {member}: {problem}"
    layouts = {_layout_of(rollout) for rollout in group.rollouts}
    return f"its rollouts differ in layout: {sorted(layouts)}" if len(layouts) > 1 else None


def layout_of(group: Group) -> Layout:
    """Return name, shape and dtype of the arrays recorded per decision; empty for a group without rollouts."""
    return _layout_of(group.rollouts[0]) if group.rollouts else ()


def _validate_rollout(rollout: Rollout, has_record: bool) -> str | None:
    if not isinstance(rollout.success, bool | np.bool_):
        return f"the environment returned success {rollout.success!r}, not a bool"
    return _validate_record(rollout) if has_record else None


def _validate_record(rollout: Rollout) -> str | None:
    log_probs, valid = rollout.log_probs_TU, rollout.valid_TU
    if log_probs.ndim != 2 or not log_probs.size or valid.shape != log_probs.shape or valid.dtype != np.bool_:
        return f"log-probabilities {log_probs.shape} and mask {valid.shape} {valid.dtype} do not match"
    if not np.isfinite(log_probs[valid]).all():
        return "a log-probability is not finite"
    for name, array in rollout.record.items():
        if len(array) != len(log_probs):
            return f"record {name} has {len(array)} rows for {len(log_probs)} decisions"
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            return f"record {name} is not finite"
    return None


def _layout_of(rollout: Rollout) -> Layout:
    arrays = {**rollout.record, "log_probs": rollout.log_probs_TU}
    return tuple((name, array.shape[1:], str(array.dtype)) for name, array in sorted(arrays.items()))
