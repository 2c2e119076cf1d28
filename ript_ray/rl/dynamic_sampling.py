"""Dynamic sampling: reject groups whose advantages are all zero.

Source: RIPT-VLA section 4.2 and Algorithm 1, lines 11 to 13.
"""

from collections.abc import Sequence
from enum import StrEnum

from ript_ray.rl.advantages import leave_one_out


class Verdict(StrEnum):
    """Whether a group enters the batch, or why it is rejected."""

    ACCEPTED = "accepted"
    ALL_FAILED = "all_failed"
    ALL_SOLVED = "all_solved"
    STALE = "stale"
    INVALID = "invalid"


UNIFORM = (Verdict.ALL_FAILED, Verdict.ALL_SOLVED)
REJECTIONS = (*UNIFORM, Verdict.STALE, Verdict.INVALID)


def judge(rewards_K: Sequence[float]) -> Verdict:
    """Accept a group with a nonzero advantage (lines 11 to 14); a uniform group gives no gradient."""
    if leave_one_out(rewards_K).any():
        return Verdict.ACCEPTED
    return Verdict.ALL_SOLVED if rewards_K[0] > 0 else Verdict.ALL_FAILED
