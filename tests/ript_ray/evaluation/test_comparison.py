"""Paired differences: published examples and coverage."""

import itertools
import math

import numpy as np
import pytest

from ript_ray.evaluation.comparison import Comparison, PairedDifference
from ript_ray.evaluation.evaluate import EvaluationResult


def pairs(both: int, lost: int, gained: int, neither: int) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Outcomes of the first and of the second policy."""
    first = (True,) * (both + lost) + (False,) * (gained + neither)
    second = (True,) * both + (False,) * lost + (True,) * gained + (False,) * neither
    return first, second


def interval(*table: int) -> tuple[float, float, float]:
    found = PairedDifference.of(*pairs(*table))
    return found.difference, found.low, found.high


def test_intervals_match_published_examples() -> None:
    # Fagerland, Lydersen and Laake 2014 (Statistics in Medicine 33, 2850): airway hyper-responsiveness before and after
    # stem-cell transplantation; there as first less second, -0.286 with Newcombe's interval -0.507 to -0.026.
    assert interval(1, 1, 7, 12) == pytest.approx((0.286, 0.026, 0.507), abs=5e-4)
    # The same authors, R package contingencytables: response before and after consolidation therapy.
    assert interval(59, 6, 16, 80) == pytest.approx((0.0621, 0.0046, 0.1186), abs=5e-5)
    # Altman, Machin, Bryant and Gardner 2000 (Statistics with Confidence), table 6.2: 0.122, 0.011 to 0.226.
    assert interval(14, 0, 5, 22) == pytest.approx((0.122, 0.011, 0.226), abs=5e-4)


def test_the_p_value_is_a_sign_test_on_the_pairs_that_differ() -> None:
    assert PairedDifference.of(*pairs(20, 2, 12, 16)).p_value == pytest.approx(
        0.0129, abs=5e-5
    )  # Armitage and Berry 1994
    assert PairedDifference.of(*pairs(1, 1, 7, 12)).p_value == pytest.approx(2 * 9 / 2**8)
    assert PairedDifference.of(*pairs(3, 0, 0, 4)).p_value == 1.0


def test_the_interval_stays_in_range_contains_the_difference_and_is_antisymmetric() -> None:
    for table in itertools.product((0, 1, 3, 25), repeat=4):
        if sum(table):
            both, lost, gained, neither = table
            difference, low, high = interval(*table)
            assert -1 - 1e-12 <= low <= difference <= high <= 1 + 1e-12
            assert high > low, "a few rollouts never leave certainty"
            turned = interval(both, gained, lost, neither)
            assert turned == pytest.approx((-difference, -high, -low), abs=1e-12)


def test_the_interval_has_its_nominal_coverage() -> None:
    generator = np.random.default_rng(0)
    covered = []
    for shares in ((0.4, 0.1, 0.2, 0.3), (0.02, 0.02, 0.5, 0.46), (0.9, 0.02, 0.05, 0.03), (0.25, 0.25, 0.25, 0.25)):
        for num_pairs in (15, 50):
            tables, counts = np.unique(generator.multinomial(num_pairs, shares, size=4000), axis=0, return_counts=True)
            ends = [interval(*table)[1:] for table in tables]
            held = [low <= shares[2] - shares[1] <= high for low, high in ends]
            covered.append(float(np.average(held, weights=counts)))
    assert min(covered) > 0.93
    assert 0.94 < np.mean(covered) < 0.985


def test_results_are_paired_per_task_and_results_over_other_rollouts_are_refused() -> None:
    first = EvaluationResult({"a": (True, False, False), "b": (False,)}, 10)
    second = EvaluationResult({"a": (True, True, False), "b": (True,)}, 10)
    comparison = Comparison.of(first, second)
    assert comparison.overall == PairedDifference.of((True, False, False, False), (True, True, False, True))
    assert (comparison.overall.num_gained, comparison.overall.num_lost, comparison.overall.num_pairs) == (2, 0, 4)
    assert comparison.per_task["b"].difference == 1.0
    assert comparison.to_json()["per_task"]["a"]["difference"] == pytest.approx(1 / 3)
    message = r"the same tasks and numbers of rollouts, not \{'a': 3, 'b': 1\} and \{'a': 2, 'b': 1\}"
    with pytest.raises(ValueError, match=message):
        Comparison.of(first, EvaluationResult({"a": (True, False), "b": (False,)}, 10))


def test_a_policy_compared_with_itself_has_no_difference() -> None:
    result = EvaluationResult({"a": (True, False) * 10}, 10)
    itself = Comparison.of(result, result).overall
    assert (itself.difference, itself.num_gained, itself.num_lost, itself.p_value) == (0.0, 0, 0, 1.0)
    assert itself.low < 0 < itself.high
    assert math.isclose(itself.low, -itself.high)
