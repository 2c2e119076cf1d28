"""Dynamic sampling: reject groups whose advantages are all zero.

Source: RIPT-VLA section 4.2 and Algorithm 1, lines 11 to 13.
"""

from collections.abc import Sequence
from enum import StrEnum

from ript_ray.rl.advantages import leave_one_out


class Verdict(StrEnum):
    """Outcome of a group: accepted if it is mixed, else the reason for rejecting it.

    Without dynamic sampling, uniform groups keep their verdict but are trained; see `trained_verdicts`.
    """

    ACCEPTED = "accepted"
    ALL_FAILED = "all_failed"
    ALL_SOLVED = "all_solved"
    STALE = "stale"
    INVALID = "invalid"


UNIFORM = (Verdict.ALL_FAILED, Verdict.ALL_SOLVED)
REJECTIONS = (*UNIFORM, Verdict.STALE, Verdict.INVALID)


def trained_verdicts(*, dynamic: bool) -> tuple[Verdict, ...]:
    """Return the verdicts of groups that enter the batch; without dynamic sampling, uniform groups do as well."""
    return (Verdict.ACCEPTED,) if dynamic else (Verdict.ACCEPTED, *UNIFORM)


def judge(rewards_K: Sequence[float]) -> Verdict:
    """Accept a group with a nonzero advantage (lines 11 to 14); a uniform group gives no gradient."""
    if leave_one_out(rewards_K).any():
        return Verdict.ACCEPTED
    return Verdict.ALL_SOLVED if rewards_K[0] > 0 else Verdict.ALL_FAILED
