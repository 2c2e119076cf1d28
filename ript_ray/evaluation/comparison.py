"""The difference between two policies that met the same contexts with the same seeds: rollouts in pairs.

What both policies solve, or both fail at, cancels out, so a paired interval is narrower than two separate ones make
believe.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import binomtest

from ript_ray.evaluation.evaluate import EvaluationResult, SuccessRate


@dataclass(frozen=True)
class PairedDifference:
    """Success of the second policy less that of the first, with a 95 % interval.

    Attributes:
        difference: -1 to 1.
        low: Lower end of the interval.
        high: Upper end of the interval.
        num_gained: Pairs that the second policy alone solved.
        num_lost: Pairs that the first policy alone solved.
        p_value: McNemar's exact test of no difference, two-sided; 1 where no pair differs.
        num_pairs: Pairs of rollouts behind it.
    """

    difference: float
    low: float
    high: float
    num_gained: int
    num_lost: int
    p_value: float
    num_pairs: int

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> "PairedDifference":
        """Compare pairs, at least one.

        Source: Newcombe 1998 (Statistics in Medicine 17, 2635), method 10: Wilson's intervals of both rates, squared
        and added, with their correlation; McNemar 1947, exact as a sign test.

        Raises:
            ValueError: There are more outcomes of one policy than of the other.
        """
        num_pairs = len(first)
        num_both = sum(a and b for a, b in zip(first, second, strict=True))
        num_lost, num_gained = sum(first) - num_both, sum(second) - num_both
        before, after = SuccessRate.of(first), SuccessRate.of(second)
        phi = _correlation(num_both, num_gained, num_lost, num_pairs)
        difference = (num_gained - num_lost) / num_pairs
        down = _added(after.success_rate - after.low, before.high - before.success_rate, phi)
        up = _added(after.high - after.success_rate, before.success_rate - before.low, phi)
        num_differing = num_gained + num_lost
        p_value = float(binomtest(num_gained, num_differing).pvalue) if num_differing else 1.0
        return cls(difference, difference - down, difference + up, num_gained, num_lost, p_value, num_pairs)


@dataclass(frozen=True)
class Comparison:
    """Paired differences in all and per task."""

    overall: PairedDifference
    per_task: dict[str, PairedDifference]

    @classmethod
    def of(cls, first: EvaluationResult, second: EvaluationResult) -> "Comparison":
        """Pair two results over the same contexts and seeds.

        Raises:
            ValueError: They are of other tasks, or of another number of rollouts.
        """
        shapes = [{task: len(found) for task, found in result.outcomes.items()} for result in (first, second)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"results pair up where tasks and rollouts are the same, not {shapes[0]} and {shapes[1]}")
        pairs = {task: (found, second.outcomes[task]) for task, found in first.outcomes.items()}
        snapshot_ = [tuple(itertools.chain.from_iterable(side)) for side in zip(*pairs.values(), strict=True)]
        per_task = {task: PairedDifference.of(*pair) for task, pair in pairs.items()}
        return cls(PairedDifference.of(*snapshot_), per_task)

    def to_json(self) -> dict[str, Any]:
        """The figures over all pairs, and `per_task` the same for each task."""
        return {**asdict(self.overall), "per_task": {task: asdict(found) for task, found in self.per_task.items()}}


def _correlation(num_both: int, num_gained: int, num_lost: int, num_pairs: int) -> float:
    """Phi, towards 0 by half a pair where it is positive, 0 where a policy solves all or nothing."""
    num_neither = num_pairs - num_both - num_gained - num_lost
    margins = (num_both + num_lost) * (num_gained + num_neither) * (num_both + num_gained) * (num_lost + num_neither)
    if not margins:
        return 0.0
    numerator = num_both * num_neither - num_gained * num_lost
    if numerator > 0:
        return max(0.0, numerator - num_pairs / 2) / math.sqrt(margins)
    return numerator / math.sqrt(margins)


def _added(own: float, other: float, phi: float) -> float:
    """Length of the sum of two deviations that correlate; rounding must not make its square negative."""
    return math.sqrt(max(0.0, own**2 - 2 * phi * own * other + other**2))
