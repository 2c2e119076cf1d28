"""Paired comparison of two policies evaluated on the same contexts with the same seeds.

Pairs in which both succeed or both fail cancel out, so the paired interval is narrower than two separate intervals
suggest.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import binomtest

from ript_ray.evaluation.evaluate import EvaluationResult, SuccessRate


@dataclass(frozen=True)
class PairedDifference:
    """Success rate of the second policy minus that of the first, with a 95 % interval.

    Attributes:
        difference: -1 to 1.
        low: Lower end of the interval.
        high: Upper end of the interval.
        num_gained: Pairs in which only the second policy succeeded.
        num_lost: Pairs in which only the first policy succeeded.
        p_value: McNemar's exact test of no difference, two-sided; 1 if no pair differs.
        num_pairs: Sample size.
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
        """Compare at least one pair.

        Source: Newcombe 1998 (Statistics in Medicine 17, 2635), method 10: Wilson intervals of both rates, combined by
        squaring and adding, with their correlation; McNemar 1947, as an exact sign test.

        Raises:
            ValueError: The policies have different numbers of outcomes.
        """
        num_pairs = len(first)
        num_both = sum(a and b for a, b in zip(first, second, strict=True))
        num_lost, num_gained = sum(first) - num_both, sum(second) - num_both
        before, after = SuccessRate.of(first), SuccessRate.of(second)
        phi = _correlation(num_both, num_gained, num_lost, num_pairs)
        difference = (num_gained - num_lost) / num_pairs
        down = _combine(after.success_rate - after.low, before.high - before.success_rate, phi)
        up = _combine(after.high - after.success_rate, before.success_rate - before.low, phi)
        num_differing = num_gained + num_lost
        p_value = float(binomtest(num_gained, num_differing).pvalue) if num_differing else 1.0
        return cls(difference, difference - down, difference + up, num_gained, num_lost, p_value, num_pairs)


@dataclass(frozen=True)
class Comparison:
    """Paired differences, overall and per task."""

    overall: PairedDifference
    per_task: dict[str, PairedDifference]

    @classmethod
    def of(cls, first: EvaluationResult, second: EvaluationResult) -> "Comparison":
        """Compare two results over the same contexts and seeds.

        Raises:
            ValueError: Their tasks or numbers of rollouts differ.
        """
        counts = [{task: len(each) for task, each in result.outcomes.items()} for result in (first, second)]
        if counts[0] != counts[1]:
            raise ValueError(
                f"paired results need the same tasks and numbers of rollouts, not {counts[0]} and {counts[1]}"
            )
        pairs = {task: (each, second.outcomes[task]) for task, each in first.outcomes.items()}
        overall = [tuple(itertools.chain.from_iterable(side)) for side in zip(*pairs.values(), strict=True)]
        per_task = {task: PairedDifference.of(*pair) for task, pair in pairs.items()}
        return cls(PairedDifference.of(*overall), per_task)

    @functools.cached_property
    def holm_p_values(self) -> dict[str, float]:
        """p-values of the tasks, corrected for their number.

        The chance that any of them is below 0.05 where no task differs is at most 0.05. Source: Holm 1979.
        """
        corrected, highest = {}, 0.0
        for rank, task in enumerate(sorted(self.per_task, key=lambda task: self.per_task[task].p_value)):
            highest = max(highest, (len(self.per_task) - rank) * self.per_task[task].p_value)
            corrected[task] = min(1.0, highest)
        return corrected

    def to_json(self) -> dict[str, Any]:
        """Return the overall difference, and the differences `per_task`; `p_holm` are corrected p-values."""
        per_task = {task: {**asdict(each), "p_holm": self.holm_p_values[task]} for task, each in self.per_task.items()}
        return {**asdict(self.overall), "per_task": per_task}


def _correlation(num_both: int, num_gained: int, num_lost: int, num_pairs: int) -> float:
    """Phi coefficient; 0 if a policy succeeds always or never, continuity-corrected (num_pairs / 2) if positive."""
    num_neither = num_pairs - num_both - num_gained - num_lost
    margins = (num_both + num_lost) * (num_gained + num_neither) * (num_both + num_gained) * (num_lost + num_neither)
    if not margins:
        return 0.0
    numerator = num_both * num_neither - num_gained * num_lost
    if numerator > 0:
        return max(0.0, numerator - num_pairs / 2) / math.sqrt(margins)
    return numerator / math.sqrt(margins)


def _combine(own: float, other: float, phi: float) -> float:
    """Combine two correlated deviations; the square is clamped at 0 against rounding errors."""
    return math.sqrt(max(0.0, own**2 - 2 * phi * own * other + other**2))
